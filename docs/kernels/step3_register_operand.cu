// Step 3: weights as the register operand.
//
// wgmma takes its row operand from registers too. Weights that come as codes must pass through registers anyway, so this is
// their way; here they are still bf16, to learn the layout alone. For 16 input features warp w holds rows 16 w .. 16 w + 15
// as one fragment of mma.m16n8k16: lane 4 g + t has four registers of two neighbouring columns each,
//
//   register     0            1            2               3
//   row          g            g + 8        g               g + 8
//   columns      2t, 2t + 1   2t, 2t + 1   2t + 8, 2t + 9  2t + 8, 2t + 9
//
// Packed once in that order, u32 [n / 64, k / 64, warp 4, step 4, lane 32, register 4], a lane reads a fragment with one
// 16-byte load without bank conflicts, and a stage's weights are 8 KiB in a row: an untyped bulk copy brings them.
#include "tile.cuh"

constexpr int kStages = 4;
constexpr u32 kWeightBytes = kFeatures * kRowBytes;
constexpr u32 kStageBytes = kTokenBytes + kWeightBytes;
constexpr u32 kBarriersAt = kStages * kStageBytes;
constexpr int kThreads = 128 + 32;

extern "C" __global__ void __launch_bounds__(kThreads, 2)
    step3(const __grid_constant__ TensorMap x, const u32* w, bf16* d, int m, int n, int k) {
  const int token = blockIdx.x * kTokens, strip = blockIdx.y, stages = k / kDepth;
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
      const u32 to = shared + slot * kStageBytes;
      mbarrier_wait(empty + 8 * slot, i / kStages % 2 ^ 1);
      mbarrier_arrive_expect(full + 8 * slot, kStageBytes);
      tma_load(to, x, i * kDepth, token, full + 8 * slot);
      bulk_load(to + kTokenBytes, w + (static_cast<long long>(strip) * stages + i) * (kWeightBytes / 4), kWeightBytes,
                full + 8 * slot);
    }
    return;
  }

  float sums[64];
  u32 weights[4][4];
  for (int i = 0; i < stages; ++i) {
    const int slot = i % kStages;
    const u32 tokens = shared + slot * kStageBytes;
    mbarrier_wait(full + 8 * slot, i / kStages % 2);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint4 v = load_shared(tokens + kTokenBytes + ((warp * 4 + s) * 32 + lane) * 16);
      weights[s][0] = v.x, weights[s][1] = v.y, weights[s][2] = v.z, weights[s][3] = v.w;
    }
    wgmma_fence();  // the fragments are written; from here to the wait they belong to wgmma
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma(sums, weights[s], descriptor(tokens) + s * kStepK, i + s > 0);
    wgmma_commit();
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(empty + 8 * slot);
  }
  store_tile(sums, d, strip * kFeatures, token, m, n);
}
