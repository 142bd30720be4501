// From the warps' float32 sums to the output. Warps that split k are summed through shared memory, CTAs that share a tile
// through the workspace; then channel or global scale, bias and top-k weight are applied and the rows are stored.
//
// A shared tile is finished by its last CTA, which holds its end and meets it first; it does so after its own share, when the CTAs
// before it are about to be done too. A CTA waits only for CTAs of lower index, which start no later than itself.
#pragma once
#include "billhook/mainloop/load.cuh"
#include "billhook/ptx/memory.cuh"
#include "billhook/schedule/partial.cuh"

namespace billhook {

__device__ __forceinline__ void add(float4& v, const float4& u) { v.x += u.x, v.y += u.y, v.z += u.z, v.w += u.w; }

template <class C>
struct Epilogue {
  using T = typename C::Output;
  using Warps = typename C::Warps;
  static constexpr i32 quads = C::tile_n / 4;  // groups of four neighbouring outputs in a row of the tile

  const GemmParams& p;
  const u32 shared;
  const StreamK& line;
  Position at{};
  i32 expert = 0;

  // The row of D for a row of the tile; -1 where nothing is to be stored.
  __device__ __forceinline__ i32 row_of(i32 tile_row) const {
    return expert < 0 ? -1 : output_row<C>(p, at.tile_m, tile_row);
  }

  // Stores four neighbouring outputs; n is a multiple of 16, so all four exist or none.
  __device__ __forceinline__ void finish(float4 v, i32 row, i32 quad) const {
    const i32 column = at.tile_n * C::tile_n + quad * 4;
    if (column >= p.n) return;
    if constexpr (C::channel_scales) {
      const i64 strip = (static_cast<i64>(expert) * p.strips + column / kStrip) * kStrip;
      const i32 r = column % kStrip;  // row 16 i + 8 h + g of a strip lies at 8 g + 2 i + h
      const u16* scales = static_cast<const u16*>(p.scales) + strip + 8 * (r % 8) + 2 * (r / 16) + r / 8 % 2;
      v.x *= T::low(scales[0]), v.y *= T::low(scales[8]), v.z *= T::low(scales[16]), v.w *= T::low(scales[24]);
    }
    if constexpr (has_global_scale<typename C::Scale>) {
      const float scale = p.global_scales ? p.global_scales[expert] : 1;
      v.x *= scale, v.y *= scale, v.z *= scale, v.w *= scale;
    }
    if constexpr (C::narrow) {
      const float scale = C::factor * p.token_scales[C::indexed ? row / p.top_k : row];
      float4 by = {scale, scale, scale, scale};
      if (p.channel_scales) {
        const float4 channels =
            *reinterpret_cast<const float4*>(p.channel_scales + static_cast<i64>(expert) * p.n + column);
        by.x *= channels.x, by.y *= channels.y, by.z *= channels.z, by.w *= channels.w;
      }
      v.x *= by.x, v.y *= by.y, v.z *= by.z, v.w *= by.w;
    }
    if (p.bias) {
      const u16* bias = static_cast<const u16*>(p.bias) + static_cast<i64>(expert) * p.n + column;
      const uint2 b = *reinterpret_cast<const uint2*>(bias);
      add(v, {T::low(b.x), T::high(b.x), T::low(b.y), T::high(b.y)});
    }
    if (C::indexed && p.topk_weights) {
      const float weight = p.topk_weights[row];
      v.x *= weight, v.y *= weight, v.z *= weight, v.w *= weight;
    }
    u16* to = static_cast<u16*>(p.d) + static_cast<i64>(row) * p.ldd + column;
    *reinterpret_cast<uint2*>(to) = make_uint2(T::pack(v.x, v.y), T::pack(v.z, v.w));
  }

  // Calls `use(row of the tile, row of D, quad, sum)` for every four outputs, summed over the warps that split k.
  template <class Use>
  __device__ __forceinline__ void sum_warps(const Warps& warps, Use use) const {
    const u32 scratch = shared + C::scratch_at;
#pragma unroll
    for (i32 j = 0; j < C::columns; ++j) {
      __syncthreads();  // the scratch is free
      warps.write(scratch, j);
      __syncthreads();
#pragma unroll 1
      for (i32 q = threadIdx.x; q < 8 * quads; q += C::threads) {
        const i32 token = q / quads, quad = q % quads;
        const i32 row = row_of(j * 8 + token);
        if (row < 0) continue;
        const i32 strip = quad * 4 / kStrip;
        const u32 from = scratch + strip * (C::k_parts * kScratchBytes) + (token * kScratchRow + quad * 4 % kStrip) * 4;
        float4 v = ptx::load_shared_f32x4(from);
#pragma unroll
        for (i32 part = 1; part < C::k_parts; ++part) add(v, ptx::load_shared_f32x4(from + part * kScratchBytes));
        use(j * 8 + token, row, quad, v);
      }
    }
  }

  // A CTA shares at most two tiles with others: the one it ends in the middle of (slot 0; it is that tile's first CTA),
  // and the one it begins in the middle of (slot 1).
  __device__ __forceinline__ u32x4* slot(i32 cta, i32 first) const {
    const i64 index = 2 * static_cast<i64>(cta) + (cta == first ? 0 : 1);
    return reinterpret_cast<u32x4*>(p.partials) + index * (C::tile_m * quads);
  }

  // Stores the tile `at`, or this CTA's part of it.
  __device__ __forceinline__ void store(const Warps& warps) {
    expert = expert_of<C>(p, at.tile_m);
    const i32 first = line.owner(at, 0), last = line.owner(at, line.stages - 1);
    u32x4* const mine = slot(blockIdx.x, first);
    sum_warps(warps, [&](i32 tile_row, i32 row, i32 quad, float4 v) {
      if (first == last)
        finish(v, row, quad);
      else
        ptx::store_relaxed(mine + tile_row * quads + quad, {partial_word(v.x), partial_word(v.y), partial_word(v.z), partial_word(v.w)});
    });
  }

  // If this CTA began in the middle of the tile `at` and holds its end: sums the parts in the order of their CTAs.
  __device__ __forceinline__ void finish_shared() {
    expert = expert_of<C>(p, at.tile_m);
    constexpr i32 kBatch = 4;  // loads in flight
    const i32 first = line.owner(at, 0), last = blockIdx.x;
    if (first == last || line.owner(at, line.stages - 1) != last) return;
    for (i32 q = threadIdx.x; q < C::tile_m * quads; q += C::threads) {
      const i32 row = row_of(q / quads);
      if (row < 0) continue;
      float4 v = {};
      for (i32 cta = first; cta <= last; cta += kBatch) {
        u32x4 part[kBatch];
#pragma unroll
        for (i32 i = 0; i < kBatch; ++i)
          if (cta + i <= last) part[i] = ptx::load_relaxed(slot(cta + i, first) + q);
#pragma unroll
        for (i32 i = 0; i < kBatch; ++i) {
          if (cta + i > last) break;
          u32x4* const from = slot(cta + i, first) + q;
          u32x4 u = part[i];
          while (is_partly_empty(u)) u = ptx::load_relaxed(from);
          ptx::store_relaxed(from, {kEmpty, kEmpty, kEmpty, kEmpty});
          add(v, {__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z), __uint_as_float(u.w)});
        }
      }
      finish(v, row, q % quads);
    }
  }
};

}  // namespace billhook
