// Step 1: wgmma from shared memory.
//
// One warpgroup computes one tile of 64 output features x 128 tokens: all threads copy 64 input features of both operands to
// shared memory, wgmma multiplies them, and so on along k. Nothing overlaps. See tile.cuh for the orientation, the swizzle
// and the descriptor.
#include "tile.cuh"

// Copies `rows` rows of 64 elements, rows past `there` as zeros. Eight neighbouring threads copy one row of 128 bytes.
DEVICE void copy_rows(u32 to, const bf16* from, int rows, int there, int stride) {
  for (int i = threadIdx.x; i < rows * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    uint4 v = {0, 0, 0, 0};
    if (row < there) v = *reinterpret_cast<const uint4*>(from + static_cast<long long>(row) * stride + chunk * 8);
    store_shared(to + swizzled(row, chunk), v);
  }
}

// x: activations [m, k]; w: weights [n, k]; d: [m, n]. n and k are multiples of 64.
extern "C" __global__ void __launch_bounds__(128) step1(const bf16* x, const bf16* w, bf16* d, int m, int n, int k) {
  const int token = blockIdx.x * kTokens, feature = blockIdx.y * kFeatures;
  const u32 tokens = shared_memory(), weights = tokens + kTokenBytes;

  float sums[64];
  for (int at = 0; at < k; at += kDepth) {
    copy_rows(tokens, x + static_cast<long long>(token) * k + at, kTokens, m - token, k);
    copy_rows(weights, w + static_cast<long long>(feature) * k + at, kFeatures, kFeatures, k);
    fence_proxy_async();  // by every thread that wrote, before the barrier that tells the others
    __syncthreads();

    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kDepth / 16; ++s)
      wgmma(sums, descriptor(weights) + s * kStepK, descriptor(tokens) + s * kStepK, at + s > 0);
    wgmma_commit();
    wgmma_wait<0>();
    __syncthreads();  // all warps have read this tile
  }
  store_tile(sums, d, feature, token, m, n);
}
