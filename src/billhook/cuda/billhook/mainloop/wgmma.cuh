// One warpgroup multiplies one strip of 64 output features with the tokens of the tile: codes from shared memory become
// register fragments, activations are read from shared memory by wgmma itself. A block of 64 input features is issued in
// two halves: while the tensor cores work on one, the next is dequantized. A strip past the end multiplies leftovers that
// are never stored: a branch around it would serialise the wgmma (C7518). SM90a alone.
#pragma once
#include "billhook/mainloop/scratch.cuh"
#include "billhook/mma/wgmma.cuh"
#include "billhook/problem/params.cuh"
#include "billhook/schedule/stream_k.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
// All tokens of a tile: the widest instructions of 16, 8, 4, 2 and 1 columns of 8 that add up to them.
template <class T, i32 columns>
__device__ __forceinline__ void wgmma_columns(Accumulator* d, const Fragment& a, u64 b, bool add) {
  constexpr i32 widest = columns >= 16 ? 16 : columns >= 8 ? 8 : columns >= 4 ? 4 : columns >= 2 ? 2 : 1;
  Wgmma<T, widest>::run(d, a, b, add);
  if constexpr (columns > widest) wgmma_columns<T, columns - widest>(d + widest, a, b + widest * (1024 >> 4), add);
}

template <class C>
struct WarpgroupMma {
  using T = typename C::Activation;

  const i32 warp = threadIdx.x / 32 % 4, strip = threadIdx.x / 128;
  Accumulator sums[C::columns];  // rows 16 warp + g and + 8
  bool add;                      // to the sums, or start them anew

  // Zeros written here would make the compiler wait for wgmma in flight (C7517): the first one overwrites the sums instead.
  __device__ __forceinline__ void start_tile() { add = false; }

  __device__ __forceinline__ void multiply(const GemmParams& p, const Position& at, u32 stage) {
    const i32 lane = threadIdx.x % 32;
    const u32 codes = stage + C::codes_at + strip * (C::blocks * kBlockBytes) + warp * 512 + lane * 16;
    const u32 scales = stage + C::scales_at + strip * (C::groups_per_stage * kScaleBytes) + lane / 4 * 16 + warp * 4;
#pragma unroll
    for (i32 block = 0; block < C::blocks; ++block) {
      if (at.stage * C::blocks + block >= p.blocks) break;
      const u32x4 v = ptx::load_shared(codes + block * kBlockBytes);
      const u32 words[4] = {v.x, v.y, v.z, v.w};
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block * (C::tile_m * 128));
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        Fragment weights[2];
        const i32 group = C::channel_scales ? 0 : (block * kStrip + half * 32) / C::group_size;
        u32 pair = 0;
        if constexpr (!C::channel_scales) pair = ptx::load_shared_u32(scales + group * kScaleBytes);
#pragma unroll
        for (i32 s = 0; s < 2; ++s) {
          weights[s] = Dequantize<T, typename C::Weight>::run(words[half * 2 + s]);
          if constexpr (!C::channel_scales) scale_rows<T>(weights[s], pair);
        }
        wgmma_fence();
#pragma unroll
        for (i32 s = 0; s < 2; ++s)
          wgmma_columns<T, C::columns>(sums, weights[s], tokens + (half * 2 + s) * (32 >> 4),
                                        add || block > 0 || half > 0 || s > 0);
        wgmma_commit();
        wgmma_wait<1>();  // the half before is done, and its registers are free
      }
    }
    add = true;
  }

  __device__ __forceinline__ void end_tile() { wgmma_wait<0>(); }

  // Writes the sums of tokens 8 j .. 8 j + 7 for the rows of this warp.
  __device__ __forceinline__ void write(u32 scratch, i32 j) const {
    const i32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    write_result(scratch + strip * kScratchBytes + (2 * t * kScratchRow + 16 * warp + g) * 4, sums[j]);
  }
};
#endif

}  // namespace billhook
