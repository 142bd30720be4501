// Step 4: 4-bit codes, dequantized while wgmma runs.
//
// A stage now brings codes and scales instead of bf16 weights: a quarter of the bytes, and about 16 instructions for eight
// weights (int4.cuh). They must not add to the time of wgmma, which is asynchronous: fragments get two sets of registers. A
// stage is issued in two halves of 32 input features; `wgmma_wait<1>` after each leaves the half just issued in flight and
// ends the one before, whose registers are then dequantized into:
//
//   dequantize 0 | issue 0 | dequantize 1 | issue 1, wait for 0 | dequantize 0' | issue 0', wait for 1 | ...
//   tensor cores           | 0 ...................| 1 ................................| 0' ...
//
// A slot is given back when the first half of the next stage has been issued, for only then is its last half done.
#include "int4.cuh"

constexpr int kStages = 5;
constexpr u32 kCodesAt = kTokenBytes, kScalesAt = kCodesAt + kCodeBytes;
constexpr u32 kLoadedBytes = kScalesAt + kScaleBytes;
constexpr u32 kStageBytes = (kLoadedBytes + 1023) / 1024 * 1024;  // activations must start at multiples of 1024
constexpr u32 kBarriersAt = kStages * kStageBytes;
constexpr int kThreads = 128 + 32;

// codes: packed u32 [n / 64, k / 64, 512]; scales: packed [n / 64, k / 128, 64]. k is a multiple of 128.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    step4(const __grid_constant__ TensorMap x, const u32* codes, const bf16* scales, bf16* d, int m, int n, int k) {
  const int token = blockIdx.x * kTokens, strip = blockIdx.y, stages = k / kDepth, groups = k / kGroup;
  const u32 shared = shared_memory(), full = shared + kBarriersAt, empty = full + 8 * kStages;

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      mbarrier_init(full + 8 * slot, 1);
      mbarrier_init(empty + 8 * slot, 4);
    }
    fence_barrier_init();
  }
  __syncthreads();

  const int warp = warp_index(), lane = threadIdx.x % 32;
  if (warp == 4) {
    if (lane != 0) return;
    for (int i = 0; i < stages; ++i) {
      const int slot = i % kStages;
      const u32 to = shared + slot * kStageBytes, barrier = full + 8 * slot;
      mbarrier_wait(empty + 8 * slot, i / kStages % 2 ^ 1);
      mbarrier_arrive_expect(barrier, kLoadedBytes);
      tma_load(to, x, i * kDepth, token, barrier);
      bulk_load(to + kCodesAt, codes + (static_cast<long long>(strip) * stages + i) * (kCodeBytes / 4), kCodeBytes, barrier);
      bulk_load(to + kScalesAt, scales + (static_cast<long long>(strip) * groups + i * kDepth / kGroup) * kFeatures,
                kScaleBytes, barrier);
    }
    return;
  }

  float sums[64];
  u32 weights[2][4][4];  // of even and of odd stages: four fragments
  for (int even = 0; even < stages; even += 2) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int i = even + odd;
      const u32 stage = shared + i % kStages * kStageBytes;
      mbarrier_wait(full + 8 * (i % kStages), i / kStages % 2);
      const uint4 v = load_shared(stage + kCodesAt + codes_at(warp, lane));
      const u32 words[4] = {v.x, v.y, v.z, v.w}, pair = load_shared_u32(stage + kScalesAt + scales_at(warp, lane));
#pragma unroll
      for (int s = 0; s < 4; ++s) dequantize(weights[odd][s], words[s], pair);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < 4; ++s) wgmma(sums, weights[odd][s], descriptor(stage) + s * kStepK, i + s > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (i > 0 && lane == 0) mbarrier_arrive(empty + 8 * ((i - 1) % kStages));
    }
  }
  wgmma_wait<0>();
  store_tile(sums, d, strip * kFeatures, token, m, n);
}
