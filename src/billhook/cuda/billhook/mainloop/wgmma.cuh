// The consumer side of the Machete mainloop: a warpgroup multiplies its strips of 64 output features with the tokens of
// the tile. Codes from shared memory become register fragments; activations are read from shared memory by wgmma itself.
// A unit is one strip and 64 input features (32 if a stage would hold one unit only): while the tensor cores work on one,
// the next is dequantized into other registers. SM90a alone.
//
// A strip past the end multiplies leftovers that are never stored: a branch around it would serialise the wgmma (C7518).
#pragma once
#include "billhook/mma/wgmma.cuh"
#include "billhook/numeric/minifloat.cuh"
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
template <class C>
struct Consumer {
  using T = typename C::Activation;
  using Weight = typename C::Weight;
  using Scale = typename C::Scale;
  static constexpr i32 loads = bits<Weight> / 4;                     // of 16 bytes, for a lane's part of a block
  static constexpr i32 strips = C::strips_each;  // of this warpgroup
  static constexpr i32 steps = strips * C::blocks == 1 ? 2 : 4;      // of 16 features, of a unit

  static constexpr i32 at_once = C::sums <= 64 ? C::blocks : 1;      // blocks whose codes are read ahead, as registers allow

  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const i32 strip = C::pingpong ? 0 : threadIdx.x / 128 * strips;  // the first one
  Accumulator sums[strips][C::columns];          // rows 16 warp + g and + 8 of a strip, by 8 tokens

  // Multiplies a stage that holds `blocks` blocks. Without `add`, at the start of a tile, the sums begin anew; else the stage
  // before is no longer read at some point: then its barrier `before` is told. Nothing but wgmma ever writes the sums: the
  // compiler would wait for wgmma in flight (C7517).
  __device__ __forceinline__ void multiply(u32 stage, i32 blocks, bool add, u32 before) {
    Codes codes[at_once][strips];
#pragma unroll
    for (i32 block = 0; block < C::blocks; ++block) {
      if (block % at_once == 0) {
#pragma unroll
        for (i32 b = 0; b < at_once; ++b)
#pragma unroll
          for (i32 s = 0; s < strips; ++s)
            codes[b][s] = read_codes(stage, block + b, strip + s, block + b == 0 || block + b < blocks);
      }
      const bool exists = block == 0 || block < blocks;
      const u64 tokens = wgmma_descriptor(stage + C::activations_at + block * (C::tile_m * 128));
#pragma unroll
      for (i32 s = 0; s < strips; ++s)
#pragma unroll
        for (i32 first = 0; first < 4; first += steps) {
          Fragment weights[steps];
          dequantize(weights, codes[block % at_once][s], first, stage, block, strip + s, exists);
          wgmma_fence();
#pragma unroll
          for (i32 i = 0; i < steps; ++i)
            Wgmma<T, C::columns>::run(sums[s], weights[i], tokens + (first + i) * (32 >> 4),
                                      add || block > 0 || first + i > 0);
          wgmma_commit();
          wgmma_wait<1>();  // the unit before is done, and its registers are free
          if (block == 0 && s == 0 && first == 0) release(before, add);
        }
    }
  }

  // Waits for the last unit; its stage is free then.
  __device__ __forceinline__ void finish(u32 empty) {
    wgmma_wait<0>();
    release(empty, true);
  }

 private:
  __device__ __forceinline__ void release(u32 empty, bool yes) {
    ptx::mbarrier_arrive_warp<C::cluster>(empty, lane, yes);
  }

  // 16 rows x 64 columns of codes: those of this warp.
  struct Codes {
    u32 words[4 * loads];
  };

  // A block past the end of k meets activations of zero; what it leaves over must only be finite, as integers are whatever their
  // codes. To skip it would leave the registers of one unit in flight or of the other, and serialise the wgmma (C7513).
  __device__ __forceinline__ Codes read_codes(u32 stage, i32 block, i32 strip, bool exists) const {
    const u32 from = stage + C::codes_at + (strip * C::blocks + block) * block_bytes<Weight> + warp * loads * 512 + lane * 16;
    Codes codes;
#pragma unroll
    for (i32 i = 0; i < loads; ++i) {
      const u32x4 v = ptx::load_shared(from + i * 512);
      u32* const words = codes.words + 4 * i;
      words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
      if constexpr (has_nan<Weight>)
#pragma unroll
        for (i32 j = 0; j < 4; ++j) words[j] = exists ? words[j] : 0;
    }
    return codes;
  }

  // The fragments of `steps` steps of 16 columns from step `first` of a block on.
  __device__ __forceinline__ void dequantize(Fragment (&weights)[steps], const Codes& codes, i32 first, u32 stage, i32 block,
                                             i32 strip, bool exists) const {
    u32 scales = 0, zeros = 0;
#pragma unroll
    for (i32 i = 0; i < steps; ++i) {
      const i32 column = (first + i) * 16, group = C::channel_scales ? 0 : (block * kStrip + column) / C::group_size;
      if (i == 0 || (!C::channel_scales && column % C::group_size == 0)) {
        if constexpr (!C::channel_scales)
          scales = exists ? read_pair<Scale>(stage + C::scales_at + (strip * C::groups_per_stage + group) * row_bytes<Scale>) : 0;
        if constexpr (has_zeros<Weight>)
          zeros = exists ? read_pair<T>(stage + C::zeros_at + (strip * C::zero_groups + group) * row_bytes<T>) : 0;
      }
      weights[i] = Dequantize<T, Weight>::run(codes.words + (first + i) * loads, zeros);
      if constexpr (!C::channel_scales) scale_rows<T>(weights[i], scales);
    }
  }

  // Those of rows g and g + 8 of this warp, of a strip and group that lie at `from`.
  template <class Element>
  __device__ __forceinline__ u32 read_pair(u32 from) const {
    if constexpr (bits<Element> == 16) return ptx::load_shared_u32(from + lane / 4 * 16 + warp * 4);
    return ScalePair<T, Element>::of(ptx::load_shared_u32(from + lane / 4 * 8 + warp / 2 * 4), warp % 2);
  }
};
#endif

}  // namespace billhook
