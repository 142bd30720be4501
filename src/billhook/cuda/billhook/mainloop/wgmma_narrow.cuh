// As wgmma.cuh, for activations of 8 bits: a block of them, 128 bytes of a token, meets two blocks of codes. Scales of channels
// and of tokens multiply the sums at the end. SM90a alone.
//
// Products of s8 are added in 32-bit integers, those of e4m3 by SM90's tensor cores with fewer bits than float32 has; nothing
// is added outside them.
#pragma once
#include "billhook/mma/wgmma.cuh"
#include "billhook/numeric/narrow.cuh"
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
template <class C>
struct NarrowConsumer {
  using A = typename C::Activation;
  using Weight = typename C::Weight;
  static constexpr i32 strips = C::strips / C::consumer_warpgroups;  // of this warpgroup
  static constexpr i32 halves = strips * C::blocks == 2 ? 1 : 2;     // blocks of codes of a unit: a stage holds two units or more

  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const i32 strip = threadIdx.x / 128 * strips;  // the first one
  typename SumOf<A>::Type sums[strips][C::columns];  // rows 16 warp + g and + 8 of a strip, by 8 tokens

  // As Consumer's. A block past the end of k meets activations of zero.
  __device__ __forceinline__ void multiply(u32 stage, i32, bool add, u32 before) {
#pragma unroll
    for (i32 block = 0; block < C::blocks; block += halves) {
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block / 2 * (C::tile_m * 128)) + block % 2 * (64 >> 4);
#pragma unroll
      for (i32 s = 0; s < strips; ++s) {
        Fragment weights[2 * halves];
#pragma unroll
        for (i32 h = 0; h < halves; ++h) read(weights + 2 * h, stage, block + h, strip + s);
        wgmma_fence();
#pragma unroll
        for (i32 i = 0; i < 2 * halves; ++i)
          wgmma_columns<A, C::columns>(sums[s], weights[i], tokens + i * (32 >> 4), add || block > 0 || i > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the unit before is done, and its registers are free
        if (block == 0 && s == 0) release(before, add);
      }
    }
  }

  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    release(empty, true);
  }

 private:
  __device__ __forceinline__ void release(u32 empty, bool yes) {
    ptx::mbarrier_arrive_cluster(empty, lane, yes && lane < C::cluster);
  }

  // Two steps of 32 columns: the block's 16 rows of this warp.
  __device__ __forceinline__ void read(Fragment* weights, u32 stage, i32 block, i32 strip) const {
    const i32 t = lane % 4, from_lane = lane / 4 * 4 + 2 * t % 4;
    const u32 from = stage + C::codes_at + (strip * C::blocks + block) * block_bytes<Weight> + warp * 512 + from_lane * 16;
    const u32x4 a = ptx::load_shared(from), b = ptx::load_shared(from + 16);
    weights[0] = narrow<A, Weight>(neighbours(a.x, b.x, t), neighbours(a.y, b.y, t));
    weights[1] = narrow<A, Weight>(neighbours(a.z, b.z, t), neighbours(a.w, b.w, t));
  }
};
#endif

}  // namespace billhook
