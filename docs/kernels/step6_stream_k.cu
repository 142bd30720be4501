// Step 6: a persistent grid and stream-K.
//
// Tiles of 512 x 128 rarely come in multiples of the 66 clusters that an H100 holds. So the stages of all tiles form one line,
// and every cluster takes an equal share of it, wherever that begins and ends. The producer loads along its share and does not
// stop at the end of a tile, so loads go on under the epilogue.
//
// A tile that lies in several shares is finished by the one that holds its beginning. It is the last tile of that share and the
// first of all others, which hand over their sums when they have just begun: nobody waits long, and since nobody waits before
// having handed over, nobody waits for ever. Clusters that start earlier (lower blockIdx) take later shares, so a cluster waits
// for none that starts after it. Sums are added in the order of the line: a result depends on shape and grid, not on timing.
//
// Partial sums go to a slot of the workspace as they lie in registers, since the same thread of another cluster fetches them.
// They are their own flags: a word of all ones, a NaN that no sum has, is not written yet, and is put back once read. So
// handing over costs one write and one read, with no fence or counter between.
// Source: Osama et al., "Stream-K", PPoPP 2023.
#include "int4.cuh"

constexpr int kStages = 8, kStrips = 4, kCtas = 2, kConsumerWarps = 8;
constexpr u32 kCodesAt = kTokenBytes, kScalesAt = kCodesAt + kStrips * kCodeBytes;
constexpr u32 kLoadedBytes = kScalesAt + kStrips * kScaleBytes;
constexpr u32 kStageBytes = (kLoadedBytes + 1023) / 1024 * 1024;
constexpr u32 kBarriersAt = kStages * kStageBytes;
constexpr int kThreads = 3 * 128;

constexpr u32 kUnwritten = 0xffffffffu;
DEVICE float written(float v) { return __float_as_uint(v) == kUnwritten ? __uint_as_float(0x7fffffffu) : v; }  // another NaN
DEVICE bool unwritten(float4 v) {
  return __float_as_uint(v.x) == kUnwritten || __float_as_uint(v.y) == kUnwritten || __float_as_uint(v.z) == kUnwritten ||
         __float_as_uint(v.w) == kUnwritten;
}

constexpr int kQuads = 2 * 64 / 4;  // accumulators of a thread, in fours
constexpr int kSlot = kQuads * 32 * kConsumerWarps;  // float4 of one CTA's slot

DEVICE void hand_over(const float (&sums)[2][64], float4* slot) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const float* v = &sums[q / 16][q % 16 * 4];
    store_relaxed(slot + q * (32 * kConsumerWarps), {written(v[0]), written(v[1]), written(v[2]), written(v[3])});
  }
}

// Adds one slot's sums; eight loads are in flight.
DEVICE void take_over(float (&sums)[2][64], float4* slot) {
#pragma unroll
  for (int first = 0; first < kQuads; first += 8) {
    float4 part[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) part[i] = load_relaxed(slot + (first + i) * (32 * kConsumerWarps));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float4* const from = slot + (first + i) * (32 * kConsumerWarps);
      while (unwritten(part[i])) part[i] = load_relaxed(from);
      const float ones = __uint_as_float(kUnwritten);
      store_relaxed(from, {ones, ones, ones, ones});
      float* v = &sums[(first + i) / 16][(first + i) % 16 * 4];
      v[0] += part[i].x, v[1] += part[i].y, v[2] += part[i].z, v[3] += part[i].w;
    }
  }
}

// partials: one slot per CTA, all ones before and after. The grid: 2 CTAs for each cluster, at most one cluster per stage.
extern "C" __global__ void __cluster_dims__(kCtas, 1, 1) __launch_bounds__(kThreads, 1)
    step6(const __grid_constant__ TensorMap x, const u32* codes, const bf16* scales, bf16* d, float4* partials, int m, int n,
          int k) {
  const int stages = k / kDepth, groups = k / kGroup, tiles_m = (m + kTokens - 1) / kTokens;
  const int shares = gridDim.x / kCtas, share = shares - 1 - blockIdx.x / kCtas;
  const long long line = static_cast<long long>(n / (kCtas * kStrips * kFeatures)) * tiles_m * stages;
  const auto begin_of = [=](int other) { return static_cast<int>(line * other / shares); };
  const int begin = begin_of(share), end = begin_of(share + 1);
  const u32 shared = shared_memory(), full = shared + kBarriersAt, empty = full + 8 * kStages, rank = cluster_rank();

  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      mbarrier_init(full + 8 * slot, 1);
      mbarrier_init(empty + 8 * slot, kCtas * kConsumerWarps);
    }
    fence_barrier_init();
  }
  cluster_sync();

  const int warp = warp_index(), lane = threadIdx.x % 32;
  if (warp < 4) {
    release_registers<40>();
    for (int at = begin; at < end && threadIdx.x == 0; ++at) {
      const int i = at - begin, slot = i % kStages, tile = at / stages, stage = at % stages;
      const int token = tile % tiles_m * kTokens, first = (tile / tiles_m * kCtas + rank) * kStrips;
      const u32 to = shared + slot * kStageBytes, barrier = full + 8 * slot;
      mbarrier_wait(empty + 8 * slot, i / kStages % 2 ^ 1);
      mbarrier_arrive_expect(barrier, kLoadedBytes);
      tma_load_multicast(to + rank * (kTokenBytes / kCtas), x, stage * kDepth, token + rank * (kTokens / kCtas), barrier,
                         0b11);
      for (int s = 0; s < kStrips; ++s) {
        const long long strip = first + s;
        bulk_load(to + kCodesAt + s * kCodeBytes, codes + (strip * stages + stage) * (kCodeBytes / 4), kCodeBytes, barrier);
        bulk_load(to + kScalesAt + s * kScaleBytes, scales + (strip * groups + stage * kDepth / kGroup) * kFeatures,
                  kScaleBytes, barrier);
      }
    }
  } else {
    claim_registers<232>();
    const int strips = (warp / 4 - 1) * 2;
    const u32 codes_from = kCodesAt + strips * kCodeBytes + codes_at(warp % 4, lane);
    const u32 scales_from = kScalesAt + strips * kScaleBytes + scales_at(warp % 4, lane);

    for (int at = begin; at < end;) {
      const int tile = at / stages, tile_begin = tile * stages, tile_end = tile_begin + stages;
      const int from = at, to = min(end, tile_end);

      float sums[2][64];
      u32 weights[2][4][4];
      for (; at < to; ++at) {
        const int i = at - begin;
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
          for (int s = 0; s < 4; ++s) wgmma(sums[strip], weights[strip][s], descriptor(stage) + s * kStepK, at - from + s > 0);
          wgmma_commit();
          wgmma_wait<1>();
          if (strip == 0) mbarrier_arrive(empty + 8 * ((i + kStages - 1) % kStages), lane, at > from && lane < kCtas);
        }
      }
      wgmma_wait<0>();
      mbarrier_arrive(empty + 8 * ((at - 1 - begin) % kStages), lane, lane < kCtas);

      float4* const mine = partials + (threadIdx.x - 128);
      if (from > tile_begin) {
        hand_over(sums, mine + static_cast<long long>(share * kCtas + rank) * kSlot);
      } else {
        for (int other = share + 1; other < shares && begin_of(other) < tile_end; ++other)
          take_over(sums, mine + static_cast<long long>(other * kCtas + rank) * kSlot);
        const int feature = ((tile / tiles_m * kCtas + rank) * kStrips + strips) * kFeatures;
#pragma unroll
        for (int strip = 0; strip < 2; ++strip)
          store_tile(sums[strip], d, feature + strip * kFeatures, tile % tiles_m * kTokens, m, n);
      }
    }
  }
  cluster_sync();
}
