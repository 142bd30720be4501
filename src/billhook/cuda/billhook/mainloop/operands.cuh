// What a warp of the Marlin mainloop multiplies and adds up, in its registers: sums, scales and zero points of its rows, and
// activations from shared memory.
#pragma once
#include "billhook/mainloop/scratch.cuh"
#include "billhook/numeric/minifloat.cuh"

namespace billhook {

// Four MMA results for every 8 tokens: rows 16 i + g and 16 i + g + 8 of a strip.
template <class C>
using Sums = typename C::Sum[4][C::columns];

template <class C>
__device__ __forceinline__ void clear(Sums<C>& sums) {
#pragma unroll
  for (i32 i = 0; i < 4; ++i)
#pragma unroll
    for (i32 j = 0; j < C::columns; ++j) sums[i][j] = {};
}

// The scales or zero points of a lane's eight rows in one group: pair i holds rows 16 i + g and 16 i + g + 8.
struct RowPairs {
  u32 pair[4];
};

// `from`: shared address of those of one strip and one group.
template <class T, class Element>
__device__ __forceinline__ RowPairs load_rows(u32 from) {
  const i32 g = threadIdx.x % 32 / 4;
  if constexpr (bits<Element> == 16) {
    const u32x4 v = ptx::load_shared(from + g * 16);
    return {v.x, v.y, v.z, v.w};
  } else {
    using Pair = ScalePair<T, Element>;
    const u32 v = ptx::load_shared_u32(from + g * 8), w = ptx::load_shared_u32(from + g * 8 + 4);
    return {Pair::of(v, 0), Pair::of(v, 1), Pair::of(w, 0), Pair::of(w, 1)};
  }
}

// Pair i of those alone.
template <class T, class Element>
__device__ __forceinline__ u32 load_pair(u32 from, i32 i) {
  const i32 g = threadIdx.x % 32 / 4;
  if constexpr (bits<Element> == 16)
    return ptx::load_shared_u32(from + g * 16 + i * 4);
  else
    return ScalePair<T, Element>::of(ptx::load_shared_u32(from + g * 8 + i / 2 * 4), i % 2);
}

// The columns of one MMA, `step` of the block, for `count` x 8 tokens from 8 `from` on: 32 bytes, two registers for each 8 tokens.
template <class C, i32 count = C::columns>
struct Tokens {
  static constexpr i32 kChunk = 128 / bits<typename C::Activation>;  // columns of 16 bytes
  u32 r[count][2];

  __device__ __forceinline__ Tokens(u32 activations, i32 warp_k, i32 step, i32 from = 0) {
    const i32 lane = threadIdx.x % 32;
    const i32 column = warp_k * kStrip + step * (2 * kChunk) + lane / 8 % 2 * kChunk;
#pragma unroll
    for (i32 j = 0; j < count; j += 2) {
      // Matrices 0, 1: the two halves of k for tokens 8 j ..; matrices 2, 3: for the next 8 (the same again if there are none).
      const i32 row = min(j + lane / 16, count - 1) * 8 + lane % 8;
      const u32x4 v = ptx::ldmatrix_x4(activations + C::activation_at(from * 8 + row, column / kChunk));
      r[j][0] = v.x;
      r[j][1] = v.y;
      if (j + 1 < count) {
        r[j + 1][0] = v.z;
        r[j + 1][1] = v.w;
      }
    }
  }
};

}  // namespace billhook
