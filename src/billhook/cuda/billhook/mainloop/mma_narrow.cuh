// As mma_sync.cuh, for activations of 8 bits: a block of weights is two steps of 32 columns. Scales of channels multiply the
// sums at the end; scales of groups multiply the sums of a group within a block, which are added up in float32.
#pragma once
#include "billhook/mainloop/operands.cuh"
#include "billhook/mma/mma_narrow.cuh"
#include "billhook/numeric/narrow.cuh"

namespace billhook {

// The sums of one group within a block, as they begin and as they are read. Those of integers begin at the bits of the float
// 1.5 * 2^23, whose last place is worth 1: 64 products are less than 2^22, so that the bits become those of 1.5 * 2^23 + sum.
// That spares the conversion, which takes four times as long as an addition.
template <class Activation>
struct GroupSum {
  static __device__ __forceinline__ Accumulator begin() { return {}; }
  static __device__ __forceinline__ float value(float sum) { return sum; }
};
template <>
struct GroupSum<s8> {
  static constexpr i32 kZero = 0x4b400000;
  static __device__ __forceinline__ IntegerAccumulator begin() { return {kZero, kZero, kZero, kZero}; }
  static __device__ __forceinline__ float value(i32 sum) { return __int_as_float(sum) - 12582912.f; }
};

// The zero points of a pair of rows, each in every byte.
template <class T>
__device__ __forceinline__ Rows zero_bytes(u32 pair) {
  return {static_cast<u32>(T::low(pair)) * 0x01010101u, static_cast<u32>(T::high(pair)) * 0x01010101u};
}

// The words of 16 rows of a block, those of the two lanes that hold this one's columns. `from`: shared address of the first's.
template <class Weight>
struct Neighbours {
  static constexpr i32 kLoads = bits<Weight> / 4;  // of 16 bytes: one brings two steps of 4-bit codes
  u32 first[4 * kLoads], second[4 * kLoads];

  __device__ __forceinline__ explicit Neighbours(u32 from) {
#pragma unroll
    for (i32 load = 0; load < kLoads; ++load) {
      const u32x4 v = ptx::load_shared(from + load * 512), w = ptx::load_shared(from + load * 512 + 16);
      first[4 * load] = v.x, first[4 * load + 1] = v.y, first[4 * load + 2] = v.z, first[4 * load + 3] = v.w;
      second[4 * load] = w.x, second[4 * load + 1] = w.y, second[4 * load + 2] = w.z, second[4 * load + 3] = w.w;
    }
  }
};

// The products of some steps, for the 8 tokens of column `j`.
template <class C, i32 steps, i32 count, class Sum>
__device__ __forceinline__ void multiply_steps(Sum& sum, const Fragment (&weights)[steps], const Tokens<C, count>* tokens, i32 j) {
#pragma unroll
  for (i32 s = 0; s < steps; ++s) {
    const u32(&b)[2] = tokens[s].r[j];
    mma<typename C::Activation>(sum, weights[s], b[0], b[1], sum);
  }
}

// `stage`: shared address of the stage; the warp takes block `warp_k` of strip `warp_n`, of which `rows` exist.
template <class C>
__device__ __forceinline__ void multiply_narrow_block(Sums<C>& sums, u32 stage, i32 warp_n, i32 warp_k, i32 rows) {
  using A = typename C::Activation;
  using T = typename C::Output;
  using Weight = typename C::Weight;
  using Scale = typename C::Scale;
  using Group = GroupSum<A>;
  constexpr i32 kWords = bits<Weight> / 2;                                        // of a step
  constexpr i32 groups = C::group_size == 32 ? 2 : 1, steps = 2 / groups;         // of a block, of a group
  // Where registers are short, 16 rows at a time, and of the most columns a half or a quarter.
  constexpr bool crowded = !C::channel_scales || !sums_integers<A> || C::columns > 4;
  constexpr bool very = widened<A> || (has_zeros<Weight> && groups == 2);
  constexpr i32 count = crowded && C::columns > 6 ? C::columns / (very ? 4 : 2) : C::columns;
  const i32 lane = threadIdx.x % 32, t = lane % 4;
  const u32 activations = stage + C::activations_at;
  const u32 codes = stage + C::codes_at + (warp_n * C::blocks + warp_k) * block_bytes<Weight> + (lane / 4 * 4 + 2 * t % 4) * 16;

  const auto group_of = [&](i32 g) { return C::channel_scales ? 0 : (warp_k * kStrip + g * 32) / C::group_size; };
  const auto scales_of = [&](i32 g, i32 i) {
    return load_pair<T, Scale>(stage + C::scales_at + (warp_n * C::groups_per_stage + group_of(g)) * row_bytes<Scale>, i);
  };
  const auto zeros_of = [&](i32 g, i32 i) {
    return load_pair<T, T>(stage + C::zeros_at + (warp_n * C::zero_groups + group_of(g)) * row_bytes<T>, i);
  };

#pragma unroll
  for (i32 from = 0; from < C::columns; from += count) {
    const Tokens<C, count> tokens[2] = {{activations, warp_k, 0, from}, {activations, warp_k, 1, from}};
#pragma unroll
    for (i32 i = 0; i < 4; ++i) {
      // Without a branch the compiler would begin all four at once, and run out of registers.
      if (crowded && 16 * i >= rows) break;
      const Neighbours<Weight> words(codes + i * (512 * Neighbours<Weight>::kLoads));
#pragma unroll
      for (i32 g = 0; g < groups; ++g) {
        Rows zeros{};
        if constexpr (has_zeros<Weight>) zeros = zero_bytes<T>(zeros_of(g, i));
        Fragment weights[steps];
#pragma unroll
        for (i32 s = 0; s < steps; ++s) {
          const i32 word = (g * steps + s) * kWords;
          weights[s] = narrow<A, Weight>(words.first + word, words.second + word, t, zeros);
        }
        if constexpr (C::channel_scales) {
#pragma unroll
          for (i32 j = 0; j < count; ++j) multiply_steps<C>(sums[i][from + j], weights, tokens + g * steps, j);
        } else {
          const u32 scales = scales_of(g, i);
          const float upper = T::low(scales), lower = T::high(scales);
#pragma unroll
          for (i32 j = 0; j < count; ++j) {
            auto group = Group::begin();
            multiply_steps<C>(group, weights, tokens + g * steps, j);
            float* const sum = sums[i][from + j].v;
#pragma unroll
            for (i32 v = 0; v < 4; ++v) sum[v] = fmaf(Group::value(group.v[v]), v < 2 ? upper : lower, sum[v]);
          }
        }
      }
    }
  }
}

}  // namespace billhook
