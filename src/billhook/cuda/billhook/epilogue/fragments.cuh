// From the accumulators of a warpgroup to the output, without leaving the registers but for the last step: partial sums of
// CTAs that share a tile, scales, bias, top-k weights, rounding; then a transposition through shared memory (stmatrix) and
// 16-byte stores. SM90.
//
// A shared tile is finished by the worker that holds its first stage: it comes to it last, when the others, which begin with
// it, have long written their parts. Workers are numbered against the grid, so a CTA waits only for CTAs of lower index, which
// start no later than itself. Parts are kept as the registers hold them: no order to restore.
#pragma once
#include "billhook/epilogue/partial.cuh"
#include "billhook/mainloop/load.cuh"
#include "billhook/mma/wgmma.cuh"
#include "billhook/ptx/memory.cuh"
#include "billhook/ptx/warpgroup.cuh"
#include "billhook/schedule/waves.cuh"

namespace billhook {

#if __CUDA_ARCH__ >= 900
template <class C>
struct FragmentEpilogue {
  using T = typename C::Output;
  static constexpr i32 strips = C::strips_each, threads = 128 * C::team;  // of a consumer; of those that compute a tile
  static constexpr i32 quads = strips * C::columns;   // accumulators of a thread
  static constexpr i32 kBatch = C::epilogue_tokens / 8;  // of them at a time
  using Sum = typename C::Sum;
  using Sums = Sum[strips][C::columns];

  const GemmParams& p;
  const Waves& waves;
  const u32 shared;
  const i32 rank;  // of this CTA in its cluster
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, warpgroup = threadIdx.x / 128, first_strip = C::pingpong ? 0 : warpgroup * strips;

  // What the end of a tile needs from memory: asked for at its beginning.
  struct Ahead {
    static constexpr i32 count = C::indexed ? (C::tile_m + 127) / 128 : 0;
    i32 expert, rows[count > 0 ? count : 1];  // rows of D of this thread's tokens

    __device__ __forceinline__ Ahead(const GemmParams& p, const Segment& at) : expert(expert_of<C>(p, at.tile_m)) {
#pragma unroll
      for (i32 i = 0; i < count; ++i) {
        const i32 token = i * 128 + threadIdx.x % 128;
        rows[i] = token < C::tile_m ? output_row<C>(p, at.tile_m, token) : -1;
      }
    }
  };

  // Takes the sums of a segment.
  __device__ __forceinline__ void store(const Sums& sums, const Segment& at, const Ahead& ahead) const {
    if (at.stage > 0) {
      hand_over(sums);
      return;
    }
    const i32 last = at.count < waves.stages ? waves.last_owner(at.tile) : waves.worker;
    const i32 expert = ahead.expert;
    // An odd number of batches begins where the tile before has ended.
    if constexpr (C::indexed || C::batches % 2 == 1) ptx::sync_some<128>(1 + warpgroup);
    if constexpr (C::indexed) keep_rows(ahead);
    u32x4 part[kBatch];
    if (last > waves.worker) request(part, waves.worker + 1, 0);
#pragma unroll
    for (i32 s = 0; s < strips; ++s) {
      const Features features(*this, expert, (at.tile_n * C::cluster + rank) * C::strips + first_strip + s);
#pragma unroll
      for (i32 j = 0; j < C::columns; j += kBatch) {
        const i32 first = s * C::columns + j;
        Accumulator sum[kBatch];
#pragma unroll
        for (i32 i = 0; i < kBatch; ++i) sum[i] = to_float(sums[s][j + i]);
        if (last > waves.worker) {
          collect(sum, part, first, last);
          if (first + kBatch < quads) request(part, waves.worker + 1, first + kBatch);
        }
        if (expert < 0) continue;
        scale(sum, features, at.tile_m, j * 8);
        store_rows(sum, features.strip, at.tile_m, j * 8, first / kBatch % C::scratches);
      }
    }
  }

 private:
  static __device__ __forceinline__ Accumulator to_float(const Sum& sum) {
    return {static_cast<float>(sum.v[0]), static_cast<float>(sum.v[1]), static_cast<float>(sum.v[2]),
            static_cast<float>(sum.v[3])};
  }

  __device__ __forceinline__ u32x4* slot(i32 of_worker) const {
    const i64 cta = static_cast<i64>(of_worker) * C::cluster + rank;
    return reinterpret_cast<u32x4*>(p.partials) + cta * (quads * threads) + threadIdx.x % threads;
  }

  __device__ __forceinline__ void hand_over(const Sums& sums) const {
    u32x4* const to = slot(waves.worker);
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
    const u32x4* const from = slot(of_worker) + first * threads;
#pragma unroll
    for (i32 i = 0; i < kBatch; ++i) part[i] = ptx::load_relaxed(from + i * threads);
  }

  // Adds the parts of the workers after this one up to `last`, in that order; that of the first has been requested.
  __device__ __forceinline__ void collect(Accumulator (&sum)[kBatch], u32x4 (&part)[kBatch], i32 first, i32 last) const {
#pragma unroll 1
    for (i32 other = waves.worker + 1;;) {
      u32x4* const from = slot(other) + first * threads;
#pragma unroll
      for (i32 i = 0; i < kBatch; ++i) {
        u32x4 u = part[i];
        while (is_partly_empty(u)) u = ptx::load_relaxed(from + i * threads);
        ptx::store_relaxed(from + i * threads, {kEmpty, kEmpty, kEmpty, kEmpty});
        sum[i].v[0] += __uint_as_float(u.x), sum[i].v[1] += __uint_as_float(u.y);
        sum[i].v[2] += __uint_as_float(u.z), sum[i].v[3] += __uint_as_float(u.w);
      }
      if (++other > last) return;
      request(part, other, first);
    }
  }

  // MoE: the rows of D; each warpgroup has a table of its own.
  __device__ __forceinline__ u32 rows() const { return shared + C::rows_at + warpgroup * (C::tile_m * 4); }
  __device__ __forceinline__ void keep_rows(const Ahead& ahead) const {
#pragma unroll
    for (i32 i = 0; i < Ahead::count; ++i) {
      const i32 token = i * 128 + threadIdx.x % 128;
      if (token < C::tile_m) ptx::store_shared_u32(rows() + token * 4, static_cast<u32>(ahead.rows[i]));
    }
    ptx::sync_some<128>(1 + warpgroup);
  }
  __device__ __forceinline__ i32 row_of(i32 tile_m, i32 token) const {
    if constexpr (C::indexed) return static_cast<i32>(ptx::load_shared_u32(rows() + token * 4));
    return output_row<C>(p, tile_m, token);
  }

  // What multiplies and is added to this thread's two features of a strip, rows g and g + 8 of its warp.
  struct Features {
    const i32 strip;
    float upper, lower, add_upper = 0, add_lower = 0;

    __device__ __forceinline__ Features(const FragmentEpilogue& e, i32 expert, i32 strip_) : strip(strip_) {
      const GemmParams& p = e.p;
      const i32 g = e.lane / 4, feature = strip * kStrip + e.warp * 16 + g;
      upper = lower = C::factor * (p.global_scales && expert >= 0 ? p.global_scales[expert] : 1);
      if (expert < 0 || feature - g >= p.n) return;  // n is a multiple of 16: a warp has all of its rows, or none
      if constexpr (C::channel_scales) {  // row 16 i + 8 h + g of a strip lies at 8 g + 2 i + h
        const i64 pairs = (static_cast<i64>(expert) * p.strips + strip) * (kStrip / 2);
        const u32 pair = static_cast<const u32*>(p.scales)[pairs + g * 4 + e.warp];
        upper *= T::low(pair), lower *= T::high(pair);
      }
      const i64 at = static_cast<i64>(expert) * p.n + feature;
      if (p.channel_scales) upper *= p.channel_scales[at], lower *= p.channel_scales[at + 8];
      if (p.bias) {
        const u16* bias = static_cast<const u16*>(p.bias) + at;
        add_upper = T::low(bias[0]), add_lower = T::low(bias[8]);
      }
    }
  };

  // D = (sum x scales + bias) x top-k weight; `first`: the batch's first token in the tile.
  __device__ __forceinline__ void scale(Accumulator (&sum)[kBatch], const Features& f, i32 tile_m, i32 first) const {
    const bool weigh = C::indexed && p.topk_weights;
#pragma unroll
    for (i32 j = 0; j < kBatch; ++j)
#pragma unroll
      for (i32 i = 0; i < 2; ++i) {
        float upper = sum[j].v[i] * f.upper, lower = sum[j].v[i + 2] * f.lower;
        const i32 row = C::token_scales || weigh ? row_of(tile_m, first + 8 * j + lane % 4 * 2 + i) : -1;
        if (C::token_scales && row >= 0) {
          const float scale = p.token_scales[C::indexed ? row / p.top_k : row];
          upper *= scale, lower *= scale;
        }
        upper += f.add_upper, lower += f.add_lower;
        if (weigh && row >= 0) {
          const float weight = p.topk_weights[row];
          upper *= weight, lower *= weight;
        }
        sum[j].v[i] = upper, sum[j].v[i + 2] = lower;
      }
  }

  // Stores a batch of tokens, a row of 64 features each. Batches take turns with two scratches: when all threads have come
  // to one batch's barrier, none reads what the batch before it wrote.
  __device__ __forceinline__ void store_rows(const Accumulator (&sum)[kBatch], i32 strip, i32 tile_m, i32 first, i32 turn) const {
    const u32 scratch = shared + C::scratch_at + (warpgroup * C::scratches + turn) * C::scratch_bytes;
#pragma unroll
    for (i32 j = 0; j < kBatch; j += 2) {
      const Accumulator &a = sum[j], &b = sum[j + 1];
      const i32 row = j * 8 + lane / 16 * 8 + lane % 8, chunk = warp * 2 + lane / 8 % 2;
      ptx::stmatrix_x4_transposed(scratch + row * 128 + (chunk ^ row % 8) * 16, T::pack(a.v[0], a.v[1]),
                                  T::pack(a.v[2], a.v[3]), T::pack(b.v[0], b.v[1]), T::pack(b.v[2], b.v[3]));
    }
    ptx::sync_some<128>(1 + warpgroup);
    const i32 chunk = threadIdx.x % 8, column = strip * kStrip + chunk * 8;
#pragma unroll
    for (i32 i = 0; i < kBatch / 2; ++i) {
      const i32 token = threadIdx.x % 128 / 8 + i * 16, row = row_of(tile_m, first + token);
      if (row < 0 || column >= p.n) continue;
      *reinterpret_cast<u32x4*>(static_cast<u16*>(p.d) + static_cast<i64>(row) * p.ldd + column) =
          ptx::load_shared(scratch + token * 128 + (chunk ^ token % 8) * 16);
    }
  }
};
#endif

}  // namespace billhook
