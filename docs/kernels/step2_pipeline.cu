// Step 2: TMA, mbarriers, and a warp that only loads.
//
// Shared memory becomes a ring of stages. One thread of a fifth warp asks TMA for the tiles of a stage, swizzled on the way;
// no register and no other thread takes part. Two barriers belong to a stage:
//   full   one arrival (the producer's, which also says how many bytes to expect): the tiles are there
//   empty  four arrivals (one of each consumer warp): wgmma has read them
// Stage i uses slot i % kStages for the (i / kStages)-th time, so it waits for phases of parity i / kStages % 2; the producer
// waits for the phase before (`^ 1`), which for the first use of a slot has ended before it began.
#include "tile.cuh"

constexpr int kStages = 4;
constexpr u32 kWeightBytes = kFeatures * kRowBytes;           // 8 KiB
constexpr u32 kStageBytes = kTokenBytes + kWeightBytes;       // 24 KiB: two CTAs per SM
constexpr u32 kBarriersAt = kStages * kStageBytes;
constexpr int kThreads = 128 + 32;

// The maps' boxes: 64 x 128 of x [m, k] and 64 x 64 of w [n, k], 128-byte swizzle.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    step2(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, bf16* d, int m, int n, int k) {
  const int token = blockIdx.x * kTokens, feature = blockIdx.y * kFeatures, stages = k / kDepth;
  const u32 shared = shared_memory(), full = shared + kBarriersAt, empty = full + 8 * kStages;

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      mbarrier_init(full + 8 * slot, 1);
      mbarrier_init(empty + 8 * slot, 4);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (warp_index() == 4) {
    if (threadIdx.x % 32 != 0) return;
    for (int i = 0; i < stages; ++i) {
      const int slot = i % kStages;
      const u32 to = shared + slot * kStageBytes;
      mbarrier_wait(empty + 8 * slot, i / kStages % 2 ^ 1);
      mbarrier_arrive_expect(full + 8 * slot, kStageBytes);
      tma_load(to, x, i * kDepth, token, full + 8 * slot);
      tma_load(to + kTokenBytes, w, i * kDepth, feature, full + 8 * slot);
    }
    return;
  }

  float sums[64];
  for (int i = 0; i < stages; ++i) {
    const int slot = i % kStages;
    const u32 tokens = shared + slot * kStageBytes, weights = tokens + kTokenBytes;
    mbarrier_wait(full + 8 * slot, i / kStages % 2);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kDepth / 16; ++s)
      wgmma(sums, descriptor(weights) + s * kStepK, descriptor(tokens) + s * kStepK, i + s > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + 8 * slot);
  }
  store_tile(sums, d, feature, token, m, n);
}
