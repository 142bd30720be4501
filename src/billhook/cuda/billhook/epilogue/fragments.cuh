// From the accumulators of a warpgroup to the output, without leaving the registers but for the last step: partial sums of
// CTAs that share a tile, scales, bias, top-k weights, rounding; then a transposition through shared memory (stmatrix) and
// 16-byte stores. SM90.
//
// While a warpgroup is here its tensor cores wait, so the way of a tile that is not shared is short: two barriers for a whole
// tile of up to 144 tokens, and no code of the other way in between, which would have to be fetched.
//
// A shared tile is finished by the worker that holds its first stage: it comes to it last, when the others, which begin with
// it, have long written their parts. Workers are numbered against the grid, so a CTA waits only for CTAs of lower index, which
// start no later than itself. Parts are kept as the registers hold them: no order to restore. Those of large tiles come through the
// stages, asked for by the producer ahead of time.
#pragma once
#include "billhook/mainloop/load.cuh"
#include "billhook/mma/wgmma.cuh"
#include "billhook/ptx/memory.cuh"
#include "billhook/ptx/warpgroup.cuh"
#include "billhook/schedule/partial.cuh"
#include "billhook/schedule/waves.cuh"

namespace billhook {

#if __CUDA_ARCH__ >= 900
template <class C>
struct FragmentEpilogue {
  using T = typename C::Output;
  static constexpr i32 strips = C::strips_each, threads = 128 * C::team;  // of a consumer; of those that compute a tile
  static constexpr i32 quads = C::quads, kBatch = C::batch;               // accumulators of a thread; finished at a time
  static constexpr i32 kTokens = C::epilogue_tokens;                      // that the scratch holds
  using Sum = typename C::Sum;
  using Sums = Sum[strips][C::columns];

  const GemmParams& p;
  const Waves& waves;
  const u32 shared;
  const i32 rank;  // of this CTA in its cluster
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, warpgroup = threadIdx.x / 128;
  const i32 first_strip = C::pingpong ? 0 : warpgroup * strips;

  // What the end of a tile needs of its tokens, each of which is some thread's. Asked for long before, one after the other.
  struct Ahead {
    static constexpr i32 count = C::tables > 0 ? (C::tile_m + 127) / 128 : 0;
    i32 expert, ids[count > 0 ? count : 1];  // rows of D; from m on: there is none

    __device__ __forceinline__ Ahead(const GemmParams& p, const Segment& at) : expert(expert_of<C>(p, at.tile_m)) {
#pragma unroll
      for (i32 i = 0; i < count; ++i) {
        const i32 token = i * 128 + threadIdx.x % 128;
        ids[i] = token < C::tile_m ? row_id<C>(p, at.tile_m, token) : p.m;
      }
    }
  };
  struct Factors {
    float scales[Ahead::count > 0 ? Ahead::count : 1], weights[Ahead::count > 0 ? Ahead::count : 1];

    __device__ __forceinline__ Factors(const GemmParams& p, const Ahead& ahead) {
#pragma unroll
      for (i32 i = 0; i < Ahead::count; ++i) {
        const bool there = ahead.ids[i] < p.m;
        if constexpr (C::token_scales) scales[i] = there ? p.token_scales[C::indexed ? ahead.ids[i] / p.top_k : ahead.ids[i]] : 0;
        if constexpr (C::indexed) weights[i] = there && p.topk_weights ? p.topk_weights[ahead.ids[i]] : 1;
      }
    }
  };

  // What multiplies and is added to this thread's two features of a strip, rows g and g + 8 of its warp.
  struct Features {
    float upper = 1, lower = 1, add_upper = 0, add_lower = 0;

    Features() = default;
    __device__ __forceinline__ Features(const FragmentEpilogue& e, const Segment& at, i32 expert, i32 s) {
      const GemmParams& p = e.p;
      const i32 strip = e.strip_of(at, s), g = e.lane / 4, feature = strip * kStrip + e.warp * 16 + g;
      upper = lower = C::factor * (p.global_scales && expert >= 0 ? p.global_scales[expert] : 1);
      if (expert < 0 || feature - g >= p.n) return;  // n is a multiple of 16: a warp has all of its rows, or none
      if constexpr (C::channel_scales) {  // row 16 i + 8 h + g of a strip lies at 8 g + 2 i + h
        const i64 pairs = (static_cast<i64>(expert) * p.strips + strip) * (kStrip / 2);
        const u32 pair = static_cast<const u32*>(p.scales)[pairs + g * 4 + e.warp];
        upper *= T::low(pair), lower *= T::high(pair);
      }
      const i64 at_feature = static_cast<i64>(expert) * p.n + feature;
      if (p.channel_scales) upper *= p.channel_scales[at_feature], lower *= p.channel_scales[at_feature + 8];
      if (p.bias) {
        const u16* bias = static_cast<const u16*>(p.bias) + at_feature;
        add_upper = T::low(bias[0]), add_lower = T::low(bias[8]);
      }
    }
  };
  // Those of the first strip, asked for before the last unit is done where they are always needed.
  static constexpr bool kFeaturesAhead = C::narrow && !C::promotes;
  __device__ __forceinline__ Features first_features(const Segment& at, const Ahead& ahead) const {
    return kFeaturesAhead && at.stage == 0 ? Features(*this, at, ahead.expert, 0) : Features();
  }

  // Takes the sums of a segment. `slot`, `parity`: of the stage that comes next.
  __device__ __forceinline__ void store(const Sums& sums, const Segment& at, const Ahead& ahead, const Factors& factors,
                                        const Features& first_features, i32 slot, u32 parity) const {
    i32 last = waves.worker;
    if constexpr (C::shares_tiles) {
      if (at.stage > 0) {
        hand_over(sums);
        return;
      }
      if (at.count < waves.stages) last = waves.last_owner(at.tile);
    }
    ptx::sync_some<128>(1 + warpgroup);  // none reads any more what the tile before left
    if constexpr (C::tables > 0) {
      keep(ahead, factors);
      ptx::sync_some<128>(1 + warpgroup);
    }
    if (C::shares_tiles && last > waves.worker) {
      finish<C::shares_tiles, false>(sums, at, ahead.expert, last, first_features, slot, parity);
    } else if (ahead.expert >= 0) {
      if (kMayBePlain && !p.global_scales && !p.channel_scales && !p.bias && !p.topk_weights)
        finish<false, true>(sums, at, ahead.expert, last, first_features, slot, parity);
      else
        finish<false, false>(sums, at, ahead.expert, last, first_features, slot, parity);
    }
  }

 private:
  static constexpr bool kMayBePlain = !C::channel_scales && !C::token_scales && C::factor == 1;  // nothing but rounding is left

  __device__ __forceinline__ i32 strip_of(const Segment& at, i32 s) const {
    return (at.tile_n * C::cluster + rank) * C::strips + first_strip + s;
  }

  static __device__ __forceinline__ Accumulator to_float(const Sum& sum) {
    return {static_cast<float>(sum.v[0]), static_cast<float>(sum.v[1]), static_cast<float>(sum.v[2]),
            static_cast<float>(sum.v[3])};
  }

  __device__ __forceinline__ u32x4* place(i32 of_worker) const {
    return part_of<C>(p.partials, of_worker, rank) + threadIdx.x % threads;
  }

  __device__ __forceinline__ void hand_over(const Sums& sums) const {
    u32x4* const to = place(waves.worker);
#pragma unroll
    for (i32 s = 0; s < strips; ++s)
#pragma unroll
      for (i32 j = 0; j < C::columns; ++j) {
        const Accumulator sum = to_float(sums[s][j]);
        ptx::store_relaxed(to + (s * C::columns + j) * threads,
                           {partial_word(sum.v[0]), partial_word(sum.v[1]), partial_word(sum.v[2]), partial_word(sum.v[3])});
      }
  }

  // Begins to read a batch of a worker's part.
  __device__ __forceinline__ void request(u32x4 (&part)[kBatch], i32 of_worker, i32 first) const {
    const u32x4* const from = place(of_worker) + first * threads;
#pragma unroll
    for (i32 i = 0; i < kBatch; ++i) part[i] = ptx::load_relaxed(from + i * threads);
  }

  // Adds the parts of the workers after this one up to `last`, in that order; that of the first has been requested.
  __device__ __forceinline__ void collect(Accumulator (&sum)[kBatch], u32x4 (&part)[kBatch], i32 first, i32 last) const {
#pragma unroll 1
    for (i32 other = waves.worker + 1;;) {
      u32x4* const from = place(other) + first * threads;
#pragma unroll
      for (i32 i = 0; i < kBatch; ++i) add(sum[i], part[i], from + i * threads);
      if (++other > last) return;
      request(part, other, first);
    }
  }

  // The same where they come through the stages.
  __device__ __forceinline__ void take(Accumulator (&sum)[kBatch], i32 first, i32 last, i32& slot, u32& parity) const {
#pragma unroll 1
    for (i32 other = waves.worker + 1; other <= last; ++other) {
      ptx::mbarrier_wait(shared + C::full_at + 8 * slot, parity);
      const u32 stage = shared + slot * C::stage_bytes + threadIdx.x % threads * 16;
      u32x4* const from = place(other) + first * threads;
#pragma unroll
      for (i32 i = 0; i < kBatch; ++i) add(sum[i], ptx::load_shared(stage + i * (threads * 16)), from + i * threads);
      __syncwarp();  // all lanes have read
      ptx::mbarrier_arrive_warp<C::cluster>(shared + C::empty_at + 8 * slot, lane, true);
      if (++slot == C::stages) {
        slot = 0;
        parity ^= 1;
      }
    }
  }

  // Adds a worker's sums; waits until they are in their place if they are not there yet, and empties it.
  static __device__ __forceinline__ void add(Accumulator& sum, u32x4 part, u32x4* from) {
    while (is_partly_empty(part)) part = ptx::load_relaxed(from);
    ptx::store_relaxed(from, {kEmpty, kEmpty, kEmpty, kEmpty});
    sum.v[0] += __uint_as_float(part.x), sum.v[1] += __uint_as_float(part.y);
    sum.v[2] += __uint_as_float(part.z), sum.v[3] += __uint_as_float(part.w);
  }

  // Tables of a warpgroup's tokens, as far as the kernel has them: rows of D, top-k weights, scales.
  __device__ __forceinline__ u32 table(i32 which) const {
    return shared + C::tables_at + (warpgroup * C::tables + which) * (C::tile_m * 4);
  }
  __device__ __forceinline__ u32 ids() const { return table(0); }
  __device__ __forceinline__ u32 weights() const { return table(1); }
  __device__ __forceinline__ u32 scales() const { return table(C::tables - 1); }

  __device__ __forceinline__ void keep(const Ahead& ahead, const Factors& factors) const {
#pragma unroll
    for (i32 i = 0; i < Ahead::count; ++i) {
      const i32 token = i * 128 + threadIdx.x % 128;
      if (token >= C::tile_m) continue;
      if constexpr (C::indexed) ptx::store_shared_u32(ids() + token * 4, static_cast<u32>(ahead.ids[i]));
      if constexpr (C::indexed) ptx::store_shared(weights() + token * 4, factors.weights[i]);
      if constexpr (C::token_scales) ptx::store_shared(scales() + token * 4, factors.scales[i]);
    }
  }

  // Finishes a tile: with the parts of others up to worker `last` if it is shared, by rounding alone if it is plain.
  template <bool is_shared, bool is_plain>
  __device__ __forceinline__ void finish(const Sums& sums, const Segment& at, i32 expert, i32 last,
                                         const Features& first_features, i32 slot, u32 parity) const {
    const u32 scratch = shared + C::scratch_at + warpgroup * C::scratch_bytes;
    u32x4 part[kBatch];
    if constexpr (is_shared && !C::fetches_parts) request(part, waves.worker + 1, 0);
#pragma unroll
    for (i32 s = 0; s < strips; ++s) {
      const i32 strip = strip_of(at, s);
      const Features features = is_plain ? Features() : kFeaturesAhead && s == 0 ? first_features : Features(*this, at, expert, s);
#pragma unroll
      for (i32 first = 0; first < C::tile_m; first += kTokens) {
        if (s + first > 0) ptx::sync_some<128>(1 + warpgroup);  // the scratch has been read
#pragma unroll
        for (i32 j = 0; j < kTokens / 8; j += kBatch) {
          const i32 column = first / 8 + j, quad = s * C::columns + column;
          if (column >= C::columns) break;  // the last of the tile are fewer
          Accumulator sum[kBatch];
#pragma unroll
          for (i32 i = 0; i < kBatch; ++i) sum[i] = to_float(sums[s][column + i]);
          if constexpr (is_shared && C::fetches_parts) {
            take(sum, quad, last, slot, parity);
          } else if constexpr (is_shared) {
            collect(sum, part, quad, last);
            if (quad + kBatch < quads) request(part, waves.worker + 1, quad + kBatch);
          }
#pragma unroll
          for (i32 i = 0; i < kBatch; i += 2) {
            if constexpr (!is_plain) {
              scale(sum[i], features, (column + i) * 8);
              scale(sum[i + 1], features, (column + i + 1) * 8);
            }
            write(scratch + (j + i) * (8 * 128), sum[i], sum[i + 1]);
          }
        }
        ptx::sync_some<128>(1 + warpgroup);
        if (!is_shared || expert >= 0) store_rows(scratch, strip, at.tile_m, first);
      }
    }
  }

  // D = (sum x scales + bias) x top-k weight, of 8 tokens of the tile from `first` on.
  __device__ __forceinline__ void scale(Accumulator& sum, const Features& f, i32 first) const {
    const u32 token = (first + lane % 4 * 2) * 4;
    float2 by = {1, 1}, weight = {1, 1};
    if constexpr (C::token_scales) by = ptx::load_shared_f32x2(scales() + token);
    if constexpr (C::indexed) weight = ptx::load_shared_f32x2(weights() + token);
    sum.v[0] = (sum.v[0] * f.upper * by.x + f.add_upper) * weight.x;
    sum.v[1] = (sum.v[1] * f.upper * by.y + f.add_upper) * weight.y;
    sum.v[2] = (sum.v[2] * f.lower * by.x + f.add_lower) * weight.x;
    sum.v[3] = (sum.v[3] * f.lower * by.y + f.add_lower) * weight.y;
  }

  // Writes 16 tokens, rows of the scratch from `to` on: of 64 features, eight by eight permuted so that no two meet in a bank.
  __device__ __forceinline__ void write(u32 to, const Accumulator& a, const Accumulator& b) const {
    const i32 row = lane / 16 * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
    ptx::stmatrix_x4_transposed(to + row * 128 + (chunk ^ row % 8) * 16, T::pack(a.v[0], a.v[1]), T::pack(a.v[2], a.v[3]),
                                T::pack(b.v[0], b.v[1]), T::pack(b.v[2], b.v[3]));
  }

  // Stores what the scratch holds: tokens of the tile from `first` on, eight threads a row.
  __device__ __forceinline__ void store_rows(u32 scratch, i32 strip, i32 tile_m, i32 first) const {
    constexpr i32 rows = kTokens / 16, kAtOnce = rows % 4 == 0 ? 4 : rows % 3 == 0 ? 3 : rows % 5 == 0 ? 5 : rows;
    const i32 row = threadIdx.x % 128 / 8, chunk = threadIdx.x % 8, column = strip * kStrip + chunk * 8;
    const u32 from = scratch + row * 128 + (chunk ^ row % 8) * 16;
    u16* const d = static_cast<u16*>(p.d) + column;
#pragma unroll
    for (i32 i = 0; i < rows; i += kAtOnce) {
      i32 ids[kAtOnce];
      u32x4 words[kAtOnce];
#pragma unroll
      for (i32 q = 0; q < kAtOnce; ++q) {
        const i32 token = first + row + (i + q) * 16;
        ids[q] = C::indexed ? static_cast<i32>(ptx::load_shared_u32(this->ids() + token * 4)) : tile_m * C::tile_m + token;
        words[q] = ptx::load_shared(from + (i + q) * (16 * 128));
      }
#pragma unroll
      for (i32 q = 0; q < kAtOnce; ++q)
        if (first + (i + q) * 16 < C::tile_m && ids[q] < p.m && column < p.n)
          *reinterpret_cast<u32x4*>(d + static_cast<i64>(ids[q]) * p.ldd) = words[q];
    }
  }
};
#endif

}  // namespace billhook
