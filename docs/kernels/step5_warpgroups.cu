// Step 5: warpgroups with roles of their own, and activations that two CTAs share.
//
// Up to here a CTA loads 16 KiB of activations for 64 x 128 sums. The tensor cores of an SM do 2048 bf16 products a cycle, so
// these 64 x 128 x 64 take 256 cycles: 64 bytes a cycle, 15 TB/s for 132 SMs at 1.75 GHz, more than L2 can deliver. So each
// consumer warpgroup now takes two strips of 64 features, a CTA has two consumers, and two CTAs with the same tokens form a
// cluster: each loads half of the activations and multicasts it to both. That is 8 KiB for 256 x 128 sums: an eighth.
//
// Two strips are 128 accumulators a thread, more than three warpgroups of 168 registers (65536 / 384) leave room for. The
// producer warpgroup, which needs hardly any, gives its own away: 40 + 2 x 232 = 3 x 168.
//
// A slot may be refilled once both CTAs have read it, since each producer writes to both: `empty` counts the consumer warps of
// the two CTAs, and they arrive at both. `full` stays a CTA's own: multicast bytes count at the barrier beside their target.
#include "int4.cuh"

constexpr int kStages = 8, kStrips = 4, kCtas = 2, kConsumerWarps = 8;
constexpr u32 kCodesAt = kTokenBytes, kScalesAt = kCodesAt + kStrips * kCodeBytes;
constexpr u32 kLoadedBytes = kScalesAt + kStrips * kScaleBytes;
constexpr u32 kStageBytes = (kLoadedBytes + 1023) / 1024 * 1024;
constexpr u32 kBarriersAt = kStages * kStageBytes;
constexpr int kThreads = 3 * 128;

// The map's box: 64 x 64, one CTA's half of the tokens. n is a multiple of 512: a cluster's eight strips.
extern "C" __global__ void __cluster_dims__(1, kCtas, 1) __launch_bounds__(kThreads, 1)
    step5(const __grid_constant__ TensorMap x, const u32* codes, const bf16* scales, bf16* d, int m, int n, int k) {
  const int token = blockIdx.x * kTokens, first = blockIdx.y * kStrips, stages = k / kDepth, groups = k / kGroup;
  const u32 shared = shared_memory(), full = shared + kBarriersAt, empty = full + 8 * kStages, rank = cluster_rank();

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      mbarrier_init(full + 8 * slot, 1);
      mbarrier_init(empty + 8 * slot, kCtas * kConsumerWarps);
    }
    fence_barrier_init();
  }
  cluster_sync();  // the other CTA arrives at and multicasts to what was initialised here

  const int warp = warp_index(), lane = threadIdx.x % 32;
  if (warp < 4) {
    release_registers<40>();
    for (int i = 0; i < stages && threadIdx.x == 0; ++i) {
      const int slot = i % kStages;
      const u32 to = shared + slot * kStageBytes, barrier = full + 8 * slot;
      mbarrier_wait(empty + 8 * slot, i / kStages % 2 ^ 1);
      mbarrier_arrive_expect(barrier, kLoadedBytes);
      tma_load_multicast(to + rank * (kTokenBytes / kCtas), x, i * kDepth, token + rank * (kTokens / kCtas), barrier, 0b11);
      for (int s = 0; s < kStrips; ++s) {
        const long long strip = first + s;
        bulk_load(to + kCodesAt + s * kCodeBytes, codes + (strip * stages + i) * (kCodeBytes / 4), kCodeBytes, barrier);
        bulk_load(to + kScalesAt + s * kScaleBytes, scales + (strip * groups + i * kDepth / kGroup) * kFeatures, kScaleBytes,
                  barrier);
      }
    }
  } else {
    claim_registers<232>();
    const int strips = (warp / 4 - 1) * 2;  // the first of this warpgroup's two, within the CTA
    const u32 codes_from = kCodesAt + strips * kCodeBytes + codes_at(warp % 4, lane);
    const u32 scales_from = kScalesAt + strips * kScaleBytes + scales_at(warp % 4, lane);

    float sums[2][64];
    u32 weights[2][4][4];  // of each strip: four fragments; while one strip's multiply, the other's are dequantized
    for (int i = 0; i < stages; ++i) {
      const u32 stage = shared + i % kStages * kStageBytes;
      mbarrier_wait(full + 8 * (i % kStages), i / kStages % 2);
#pragma unroll
      for (int strip = 0; strip < 2; ++strip) {
        const uint4 v = load_shared(stage + codes_from + strip * kCodeBytes);
        const u32 words[4] = {v.x, v.y, v.z, v.w}, pair = load_shared_u32(stage + scales_from + strip * kScaleBytes);
#pragma unroll
        for (int s = 0; s < 4; ++s) dequantize(weights[strip][s], words[s], pair);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) wgmma(sums[strip], weights[strip][s], descriptor(stage) + s * kStepK, i + s > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (strip == 0) mbarrier_arrive(empty + 8 * ((i + kStages - 1) % kStages), lane, i > 0 && lane < kCtas);
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int strip = 0; strip < 2; ++strip)
      store_tile(sums[strip], d, (first + strips + strip) * kFeatures, token, m, n);
  }
  cluster_sync();  // the other CTA may still arrive at barriers of this one
}
