// As wgmma.cuh, for activations of 8 bits: a block of them, 128 bytes of a token, meets two blocks of codes. Scales of channels
// and of tokens multiply the sums at the end; scales of groups multiply the sums of a group, which are added up in float32.
// SM90a alone.
//
// Products of s8 are added in 32-bit integers, those of e4m3 by SM90's tensor cores with fewer bits than float32 has; with
// channel scales nothing is added outside them.
#pragma once
#include "billhook/mma/wgmma.cuh"
#include "billhook/numeric/narrow.cuh"
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
// The codes of a stage as fragments of 8-bit elements.
template <class C>
struct NarrowWeights {
  using A = typename C::Activation;
  using Weight = typename C::Weight;
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;

  // Two steps of 32 columns: the block's 16 rows of this warp.
  __device__ __forceinline__ void read(Fragment* weights, u32 stage, i32 block, i32 strip) const {
    const i32 t = lane % 4, from_lane = lane / 4 * 4 + 2 * t % 4;
    const u32 from = stage + C::codes_at + (strip * C::blocks + block) * block_bytes<Weight> + warp * 512 + from_lane * 16;
    const u32x4 a = ptx::load_shared(from), b = ptx::load_shared(from + 16);
    weights[0] = narrow<A, Weight>(neighbours(a.x, b.x, t), neighbours(a.y, b.y, t));
    weights[1] = narrow<A, Weight>(neighbours(a.z, b.z, t), neighbours(a.w, b.w, t));
  }

  __device__ __forceinline__ void release(u32 empty, bool yes) const {
    ptx::mbarrier_arrive_cluster(empty, lane, yes && lane < C::cluster);
  }
};

template <class C>
struct NarrowConsumer {
  using A = typename C::Activation;
  static constexpr i32 strips = C::strips_each;  // of this warpgroup
  static constexpr i32 halves = strips * C::blocks == 2 ? 1 : 2;     // blocks of codes of a unit: a stage holds two units or more

  const NarrowWeights<C> codes{};
  const i32 strip = C::pingpong ? 0 : threadIdx.x / 128 * strips;  // the first one
  typename C::Sum sums[strips][C::columns];      // rows 16 warp + g and + 8 of a strip, by 8 tokens

  // As Consumer's. A block past the end of k meets activations of zero.
  __device__ __forceinline__ void multiply(u32 stage, i32, bool add, u32 before) {
#pragma unroll
    for (i32 block = 0; block < C::blocks; block += halves) {
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block / 2 * (C::tile_m * 128)) + block % 2 * (64 >> 4);
#pragma unroll
      for (i32 s = 0; s < strips; ++s) {
        Fragment weights[2 * halves];
#pragma unroll
        for (i32 h = 0; h < halves; ++h) codes.read(weights + 2 * h, stage, block + h, strip + s);
        wgmma_fence();
#pragma unroll
        for (i32 i = 0; i < 2 * halves; ++i)
          wgmma_columns<A, C::columns>(sums[s], weights[i], tokens + i * (32 >> 4), add || block > 0 || i > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the unit before is done, and its registers are free
        if (block == 0 && s == 0) codes.release(before, add);
      }
    }
  }

  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    codes.release(empty, true);
  }
};

// Under group scales the sums of each group begin anew; they are scaled and added while the other warpgroup multiplies. A
// warpgroup has one strip.
template <class C>
struct PromotingConsumer {
  using A = typename C::Activation;
  using T = typename C::Output;
  static_assert(C::strips == C::consumer_warpgroups, "registers are short of a second strip's sums");

  const NarrowWeights<C> codes{};
  const i32 strip = threadIdx.x / 128;
  Accumulator sums[1][C::columns];  // as NarrowConsumer's

  __device__ __forceinline__ void multiply(u32 stage, i32 blocks, bool add, u32 before) {
#pragma unroll
    for (i32 block = 0; block < C::blocks; block += 2) {
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block / 2 * (C::tile_m * 128));
      const u32 row = stage + C::scales_at + (strip * C::groups_per_stage + block / 2) * row_bytes<T>;
      const u32 scales = block == 0 || block < blocks ? ptx::load_shared_u32(row + codes.lane / 4 * 16 + codes.warp * 4) : 0;
      wgmma_wait<0>();
      if (block == 0) codes.release(before, add);
      promote(block > 0 || add);
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        Fragment weights[2];
        codes.read(weights, stage, block + half, strip);
        wgmma_fence();
#pragma unroll
        for (i32 i = 0; i < 2; ++i)
          wgmma_columns<A, C::columns>(group, weights[i], tokens + (2 * half + i) * (32 >> 4), 2 * half + i > 0);
        wgmma_commit();
      }
      upper = T::low(scales), lower = T::high(scales);
    }
  }

  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    codes.release(empty, true);
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
