// The consumer side of the Marlin mainloop: one warp multiplies one 64 (n) x 64 (k) block of weights with the tokens of
// the tile, straight from shared memory: codes -> fragment registers -> mma.sync -> float32 sums. Activations of 8 bits:
// mma_narrow.cuh.
#pragma once
#include "billhook/mainloop/mma_narrow.cuh"
#include "billhook/mainloop/operands.cuh"
#include "billhook/problem/params.cuh"
#include "billhook/schedule/stream_k.cuh"

namespace billhook {

template <class C>
__device__ __forceinline__ void add_scaled(Sums<C>& sums, const Sums<C>& group, const RowPairs& scales) {
  using T = typename C::Activation;
#pragma unroll
  for (i32 i = 0; i < 4; ++i) {
    const float upper = T::low(scales.pair[i]), lower = T::high(scales.pair[i]);
#pragma unroll
    for (i32 j = 0; j < C::columns; ++j) {
      sums[i][j].v[0] = fmaf(group[i][j].v[0], upper, sums[i][j].v[0]);
      sums[i][j].v[1] = fmaf(group[i][j].v[1], upper, sums[i][j].v[1]);
      sums[i][j].v[2] = fmaf(group[i][j].v[2], lower, sums[i][j].v[2]);
      sums[i][j].v[3] = fmaf(group[i][j].v[3], lower, sums[i][j].v[3]);
    }
  }
}

// `stage`: shared address of the stage; the warp takes block `warp_k` of strip `warp_n`.
template <class C>
__device__ __forceinline__ void multiply_block(Sums<C>& sums, u32 stage, i32 warp_n, i32 warp_k) {
  using T = typename C::Activation;
  using Weight = typename C::Weight;
  using Scale = typename C::Scale;
  constexpr i32 kSteps = kStrip / 16;
  constexpr i32 kWords = bits<Weight> / 4;   // of a fragment
  constexpr i32 kStepsPerLoad = 4 / kWords;  // fragments of one 16-byte load
  constexpr bool group_sums = C::scale_sums && !C::channel_scales;
  constexpr bool scale_weights = !C::scale_sums && !C::channel_scales;
  constexpr i32 steps_per_group = C::group_size == 16 ? 1 : C::group_size == 32 ? 2 : kSteps;
  const i32 lane = threadIdx.x % 32;
  const u32 activations = stage + C::activations_at;
  const u32 codes = stage + C::codes_at + (warp_n * C::blocks + warp_k) * block_bytes<Weight> + lane * 16;

  u32 words[4][4];
  const auto load_codes = [&](i32 load) {
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
      const u32x4 v = ptx::load_shared(codes + (i * kWords + load) * 512);
      words[i][0] = v.x, words[i][1] = v.y, words[i][2] = v.z, words[i][3] = v.w;
    }
  };
  load_codes(0);

  const auto group_of = [&](i32 step) { return C::channel_scales ? 0 : (warp_k * kStrip + step * 16) / C::group_size; };
  const auto scales_of = [&](i32 step) {
    return load_rows<T, Scale>(stage + C::scales_at + (warp_n * C::groups_per_stage + group_of(step)) * row_bytes<Scale>);
  };
  const auto zeros_of = [&](i32 step) {
    return load_rows<T, T>(stage + C::zeros_at + (warp_n * C::zero_groups + group_of(step)) * row_bytes<T>);
  };

#pragma unroll
  for (i32 first = 0; first < kSteps; first += steps_per_group) {
    Sums<C> group;
    if constexpr (group_sums) clear<C>(group);
    Sums<C>& into = group_sums ? group : sums;
    RowPairs scales{}, zeros{};
    if constexpr (has_zeros<Weight>) zeros = zeros_of(first);
    if constexpr (scale_weights && bits<Scale> == 8) scales = scales_of(first);
#pragma unroll
    for (i32 step = first; step < first + steps_per_group; ++step) {
      if constexpr (kStepsPerLoad < kSteps)
        if (step > 0 && step % kStepsPerLoad == 0) load_codes(step / kStepsPerLoad);
      const Tokens<C> tokens(activations, warp_k, step);
#pragma unroll
      for (i32 i = 0; i < 4; ++i) {
        Fragment weights = Dequantize<T, Weight>::run(words[i] + step % kStepsPerLoad * kWords, zeros.pair[i]);
        if constexpr (scale_weights) {
          // Scales that need no decoding are read again rather than held in registers.
          if constexpr (bits<Scale> == 16) scales = scales_of(first);
          scale_rows<T>(weights, scales.pair[i]);
        }
#pragma unroll
        for (i32 j = 0; j < C::columns; ++j)
          mma<T>(into[i][j], weights, tokens.r[j][0], tokens.r[j][1], into[i][j]);
      }
    }
    if constexpr (group_sums) add_scaled<C>(sums, group, scales_of(first));
  }
}

// What the kernel asks of its warps.
template <class C>
struct MmaSync {
  const i32 warp_n = threadIdx.x / 32 / C::blocks, warp_k = threadIdx.x / 32 % C::blocks;
  Sums<C> sums;

  __device__ __forceinline__ void start_tile() { clear<C>(sums); }

  __device__ __forceinline__ void multiply(const GemmParams& p, const Position& at, u32 stage) {
    const bool exists = at.stage * C::blocks + warp_k < p.blocks && at.tile_n * C::strips + warp_n < p.strips;
    if (!exists) return;
    if constexpr (C::narrow)
      multiply_narrow_block<C>(sums, stage, warp_n, warp_k, p.n - (at.tile_n * C::strips + warp_n) * kStrip);
    else
      multiply_block<C>(sums, stage, warp_n, warp_k);
  }

  __device__ __forceinline__ void end_tile() {}

  // Writes the sums of tokens 8 j .. 8 j + 7: a part of strip `warp_n`, to be added to those of the other warps.
  __device__ __forceinline__ void write(u32 scratch, i32 j) const {
    const i32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32 to = scratch + (warp_n * C::blocks + warp_k) * kScratchBytes + (2 * t * kScratchRow + g) * 4;
#pragma unroll
    for (i32 i = 0; i < 4; ++i) write_result(to + 16 * i * 4, sums[i][j]);
  }
};

}  // namespace billhook
