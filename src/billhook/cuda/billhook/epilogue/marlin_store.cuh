// From the warps' float32 sums to the output: the warps that split k are summed through shared memory, CTAs that share a
// tile through the workspace, then scale (per channel), bias and top-k weight are applied, and rows are stored.
#pragma once
#include "billhook/mainloop/marlin_multiply.cuh"

namespace billhook::marlin {

template <class C>
struct Epilogue {
  using T = typename C::Activation;

  const GemmParams& p;
  const StreamK& line;
  const u32 shared;
  char* const flag;  // one int in shared memory: is this CTA the tile's last?

  // The tile's row of D for token row `row`, or -1 if there is none.
  __device__ __forceinline__ i32 output_row(i32 tile_m, i32 row) const {
    i32 id = tile_m * C::tile_m + row;
    if constexpr (C::indexed) id = p.sorted_token_ids[id];
    return id < p.m ? id : -1;
  }

  // Stores four neighbouring outputs; n is a multiple of 16, so all four exist or none.
  __device__ __forceinline__ void finish(float4 v, i32 expert, i32 row, i32 column) const {
    if (row < 0 || column >= p.n) return;
    if constexpr (C::channel_scales) {
      const u16* scales = static_cast<const u16*>(p.scales);
      const i64 strip = (static_cast<i64>(expert) * p.strips + column / kStrip) * kStrip;
      const i32 r = column % kStrip;  // row 16 i + 8 h + g lies at 8 g + 2 i + h
      const i64 at = strip + 8 * (r % 8) + 2 * (r / 16) + r / 8 % 2;
      v.x *= T::low(scales[at]), v.y *= T::low(scales[at + 8]);
      v.z *= T::low(scales[at + 16]), v.w *= T::low(scales[at + 24]);
    }
    if (p.bias) {
      const uint2 b = *reinterpret_cast<const uint2*>(static_cast<const u16*>(p.bias) +
                                                      static_cast<i64>(expert) * p.n + column);
      v.x += T::low(b.x), v.y += T::high(b.x), v.z += T::low(b.y), v.w += T::high(b.y);
    }
    if (C::indexed && p.topk_weights) {
      const float weight = p.topk_weights[row];
      v.x *= weight, v.y *= weight, v.z *= weight, v.w *= weight;
    }
    *reinterpret_cast<uint2*>(static_cast<u16*>(p.d) + static_cast<i64>(row) * p.ldd + column) =
        make_uint2(T::pack(v.x, v.y), T::pack(v.z, v.w));
  }

  // `first`..`last`: the CTAs whose pieces hold stages of this tile. A piece meets at most two tiles that it shares:
  // slot 0 takes the one it ends in the middle of, slot 1 the one it begins in the middle of.
  __device__ __forceinline__ float4* partial(i32 cta, i32 first) const {
    const i64 slot = 2 * static_cast<i64>(cta) + (cta == first ? 0 : 1);
    return reinterpret_cast<float4*>(p.partials + slot * (C::tile_m * C::tile_n));
  }

  __device__ __forceinline__ void store(const Sums<C>& sums, const Position& at, i32 expert, i32 warp_n, i32 warp_k) {
    constexpr i32 quads = C::tile_n / 4;  // float4s in a row of the tile
    const i32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const i32 tile = at.tile_n * line.tiles_m + at.tile_m;
    const i32 first = line.owner(tile * line.stages_per_tile);
    const i32 last = line.owner((tile + 1) * line.stages_per_tile - 1);
    float4* const mine = partial(blockIdx.x, first);

#pragma unroll
    for (i32 j = 0; j < C::columns; ++j) {
      const u32 scratch = shared + C::scratch_at;
      const u32 own = scratch + (warp_n * C::warps_k + warp_k) * C::scratch_warp_bytes;
      __syncthreads();  // the scratch is free again
#pragma unroll
      for (i32 i = 0; i < 4; ++i) {
        const float* v = sums.v[i][j].v;
        ptx::store_shared(own + ((2 * t) * kScratchRow + 16 * i + g) * 4, v[0]);
        ptx::store_shared(own + ((2 * t + 1) * kScratchRow + 16 * i + g) * 4, v[1]);
        ptx::store_shared(own + ((2 * t) * kScratchRow + 16 * i + g + 8) * 4, v[2]);
        ptx::store_shared(own + ((2 * t + 1) * kScratchRow + 16 * i + g + 8) * 4, v[3]);
      }
      __syncthreads();
      for (i32 q = threadIdx.x; q < 8 * quads; q += C::threads) {
        const i32 token = q / quads, column = q % quads * 4;
        const i32 row = output_row(at.tile_m, j * 8 + token);
        if (row < 0) continue;
        u32 from = scratch + column / kStrip * (C::warps_k * C::scratch_warp_bytes) +
                   (token * kScratchRow + column % kStrip) * 4;
        float4 v = ptx::load_shared_f32x4(from);
        for (i32 w = 1; w < C::warps_k; ++w) {
          from += C::scratch_warp_bytes;
          const float4 u = ptx::load_shared_f32x4(from);
          v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
        }
        if (first == last)
          finish(v, expert, row, at.tile_n * C::tile_n + column);
        else
          mine[j * 8 * quads + q] = v;
      }
    }
    if (first != last && arrive_last(first, last)) sum_partials(at, expert, first, last);
  }

  // Counts this CTA in; true for the one that comes last, which then sees what all others wrote.
  __device__ __forceinline__ bool arrive_last(i32 first, i32 last) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const bool is_last = atomicAdd(&p.counters[first], 1u) == static_cast<u32>(last - first);
      if (is_last) p.counters[first] = 0;  // ready for the next launch
      *reinterpret_cast<volatile i32*>(flag) = is_last;
    }
    __syncthreads();
    const bool is_last = *reinterpret_cast<volatile i32*>(flag);
    if (is_last) __threadfence();
    return is_last;
  }

  // In the order of the CTAs, whoever does it: the result does not depend on timing.
  __device__ __forceinline__ void sum_partials(const Position& at, i32 expert, i32 first, i32 last) const {
    constexpr i32 quads = C::tile_n / 4;
    for (i32 q = threadIdx.x; q < C::tile_m * quads; q += C::threads) {
      const i32 row = output_row(at.tile_m, q / quads);
      if (row < 0) continue;
      float4 v = ptx::load_global_l2(partial(first, first) + q);
      for (i32 cta = first + 1; cta <= last; ++cta) {
        const float4 u = ptx::load_global_l2(partial(cta, first) + q);
        v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w;
      }
      finish(v, expert, row, at.tile_n * C::tile_n + q % quads * 4);
    }
  }
};

}  // namespace billhook::marlin
