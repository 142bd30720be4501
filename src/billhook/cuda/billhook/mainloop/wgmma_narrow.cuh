// As wgmma.cuh, for activations of 8 bits: a block of them, 128 bytes of a token, meets two blocks of codes, of 4 bits or 8.
// Scales of channels and of tokens multiply the sums at the end. Scales of groups are part of the weights, rounded to 8 bits, if
// the format says so (w4a8); else they multiply the sums of a group, which are added up in float32. SM90a alone.
//
// Products of s8 are added in 32-bit integers, those of e4m3 by SM90's tensor cores with fewer bits than float32 has; with
// channel scales nothing is added outside them.
#pragma once
#include "billhook/mma/wgmma.cuh"
#include "billhook/numeric/folded.cuh"
#include "billhook/numeric/narrow.cuh"
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
// The codes of a stage as fragments of 8-bit elements. Those of all its blocks are read at once, where registers allow that.
template <class C>
struct NarrowWeights {
  using A = typename C::Activation;
  using Weight = typename C::Weight;
  static constexpr i32 loads = bits<Weight> / 4;  // of 16 bytes, for a lane's part of a block
  static constexpr bool ahead = !C::promotes && C::sums + 8 * loads * C::strips_each * C::blocks <= 144;

  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, t = lane % 4;
  u32x4 first[C::strips_each][C::blocks][loads], second[C::strips_each][C::blocks][loads];  // words of two lanes

  __device__ __forceinline__ void request(u32 stage, i32 first_strip) {
    if constexpr (ahead) {
#pragma unroll
      for (i32 s = 0; s < C::strips_each; ++s)
#pragma unroll
        for (i32 block = 0; block < C::blocks; ++block) read(stage, block, first_strip, s);
    }
  }

  // Two steps of 32 columns: the 16 rows of this warp in a block of strip `first_strip` + `s`. What a block past the end of k
  // left in the stage must only be finite, as integers are whatever their codes.
  __device__ __forceinline__ void take(Fragment* weights, u32 stage, i32 block, i32 first_strip, i32 s, bool exists) {
    if constexpr (!ahead) read(stage, block, first_strip, s);
    if constexpr (loads == 1) {
      const u32x4 &a = first[s][block][0], &b = second[s][block][0];
      weights[0] = narrow<A, Weight>(neighbours(a.x, b.x, t), neighbours(a.y, b.y, t));
      weights[1] = narrow<A, Weight>(neighbours(a.z, b.z, t), neighbours(a.w, b.w, t));
    } else {
#pragma unroll
      for (i32 i = 0; i < 2; ++i) {
        const u32x4 &a = first[s][block][i], &b = second[s][block][i];
        const u32 words[4] = {neighbours(a.x, b.x, t), neighbours(a.y, b.y, t), neighbours(a.z, b.z, t), neighbours(a.w, b.w, t)};
#pragma unroll
        for (i32 r = 0; r < 4; ++r) weights[i].r[r] = has_nan<Weight> && !exists ? 0 : Narrow<A, Weight>::run(words[r]);
      }
    }
  }

 private:
  __device__ __forceinline__ void read(u32 stage, i32 block, i32 first_strip, i32 s) {
    const u32 from = stage + C::codes_at + ((first_strip + s) * C::blocks + block) * block_bytes<Weight> + warp * loads * 512 +
                     (lane / 4 * 4 + 2 * t % 4) * 16;
#pragma unroll
    for (i32 i = 0; i < loads; ++i)
      first[s][block][i] = ptx::load_shared(from + i * 512), second[s][block][i] = ptx::load_shared(from + i * 512 + 16);
  }
};

// The same of weights that their group's scale is part of.
template <class C>
struct FoldedWeights {
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  u32x4 words[C::strips_each][C::blocks];
  FoldedRows rows;  // of the strip and group that were taken last

  __device__ __forceinline__ void request(u32 stage, i32 first_strip) {
#pragma unroll
    for (i32 s = 0; s < C::strips_each; ++s)
#pragma unroll
      for (i32 block = 0; block < C::blocks; ++block)
        words[s][block] = ptx::load_shared(stage + C::codes_at + ((first_strip + s) * C::blocks + block) * block_bytes<u4b8> +
                                           warp * 512 + lane * 16);
  }

  // Scales past the end of k are what the stage held before, perhaps NaN, and activations of zero do not undo that.
  __device__ __forceinline__ void take(Fragment* weights, u32 stage, i32 block, i32 first_strip, i32 s, bool exists) {
    if (block * kStrip % C::group_size == 0) {
      const i32 row = (first_strip + s) * C::groups_per_stage + block * kStrip / C::group_size;
      const u32 word = ptx::load_shared_u32(stage + C::scales_at + row * row_bytes<e4m3fn> + lane / 4 * 8 + warp / 2 * 4);
      rows.fill(exists ? word >> warp % 2 * 16 : 0);
    }
    const u32x4& v = words[s][block];
    weights[0] = rows.find(v.x, v.y);
    weights[1] = rows.find(v.z, v.w);
  }
};

// Tells the producers of a cluster that a stage is free, if `yes`.
template <class C>
__device__ __forceinline__ void release_stage(u32 empty, bool yes) {
  const i32 lane = threadIdx.x % 32;
  ptx::mbarrier_arrive_warp<C::cluster>(empty, lane, yes);
}

template <class C, class Weights>
struct NarrowConsumer {
  using A = typename C::Activation;
  static constexpr i32 strips = C::strips_each;  // of this warpgroup
  static constexpr i32 halves = strips * C::blocks == 2 ? 1 : 2;     // blocks of codes of a unit: a stage holds two units or more

  Weights codes{};
  const i32 strip = C::pingpong ? 0 : threadIdx.x / 128 * strips;  // the first one
  typename C::Sum sums[strips][C::columns];      // rows 16 warp + g and + 8 of a strip, by 8 tokens

  // As Consumer's. A block past the end of k meets activations of zero.
  __device__ __forceinline__ void multiply(u32 stage, i32 blocks, bool add, u32 before) {
    codes.request(stage, strip);
#pragma unroll
    for (i32 block = 0; block < C::blocks; block += halves) {
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block / 2 * (C::tile_m * 128)) + block % 2 * (64 >> 4);
#pragma unroll
      for (i32 s = 0; s < strips; ++s) {
        Fragment weights[2 * halves];
#pragma unroll
        for (i32 h = 0; h < halves; ++h)
          codes.take(weights + 2 * h, stage, block + h, strip, s, block + h == 0 || block + h < blocks);
        wgmma_fence();
#pragma unroll
        for (i32 i = 0; i < 2 * halves; ++i)
          Wgmma<A, C::columns>::run(sums[s], weights[i], tokens + i * (32 >> 4), add || block > 0 || i > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the unit before is done, and its registers are free
        if (block == 0 && s == 0) release_stage<C>(before, add);
      }
    }
  }

  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    release_stage<C>(empty, true);
  }
};

// Under group scales the sums of each group begin anew; they are scaled and added while the other warpgroup multiplies. A
// warpgroup has one strip.
template <class C>
struct PromotingConsumer {
  using A = typename C::Activation;
  using T = typename C::Output;
  static_assert(C::strips == C::consumer_warpgroups, "registers are short of a second strip's sums");

  NarrowWeights<C> codes{};
  const i32 strip = threadIdx.x / 128;
  Accumulator sums[1][C::columns];  // as NarrowConsumer's

  __device__ __forceinline__ void multiply(u32 stage, i32 blocks, bool add, u32 before) {
#pragma unroll
    for (i32 block = 0; block < C::blocks; block += 2) {
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block / 2 * (C::tile_m * 128));
      const u32 row = stage + C::scales_at + (strip * C::groups_per_stage + block / 2) * row_bytes<T>;
      const u32 scales = block == 0 || block < blocks ? ptx::load_shared_u32(row + codes.lane / 4 * 16 + codes.warp * 4) : 0;
      wgmma_wait<0>();
      if (block == 0) release_stage<C>(before, add);
      promote(block > 0 || add);
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        Fragment weights[2];
        codes.take(weights, stage, block + half, strip, 0, block + half == 0 || block + half < blocks);
        wgmma_fence();
#pragma unroll
        for (i32 i = 0; i < 2; ++i)
          Wgmma<A, C::columns>::run(group, weights[i], tokens + (2 * half + i) * (32 >> 4), 2 * half + i > 0);
        wgmma_commit();
      }
      upper = T::low(scales), lower = T::high(scales);
    }
  }

  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    release_stage<C>(empty, true);
    promote(true);
  }

 private:
  typename SumOf<A>::Type group[C::columns];
  float upper, lower;  // scales of the group in flight, rows g and g + 8 of this warp

  // Adds the sums of the group that was in flight; without `add`, at the start of a tile, all begin anew.
  __device__ __forceinline__ void promote(bool add) {
#pragma unroll
    for (i32 j = 0; j < C::columns; ++j)
#pragma unroll
      for (i32 v = 0; v < 4; ++v) {
        float& sum = sums[0][j].v[v];
        sum = add ? fmaf(value(group[j].v[v]), v < 2 ? upper : lower, sum) : 0;
      }
  }

  static __device__ __forceinline__ float value(float sum) { return sum; }
  // Of fewer than 22 bits: added to those of the float 1.5 * 2^23, whose last place is worth 1. That is faster than to convert.
  static __device__ __forceinline__ float value(i32 sum) { return __int_as_float(sum + 0x4b400000) - 12582912.f; }
};
#endif

}  // namespace billhook
