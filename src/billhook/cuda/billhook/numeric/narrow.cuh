// From packed codes to fragments of 8-bit elements (m16n8k32, and warp by warp m64nNk32): register 0 holds row g, columns
// 4 t .. 4 t + 3 of a step of 32, register 1 row g + 8, registers 2 and 3 the same 16 columns on. SM75+.
//
// The packed layout gives lane (g, t) columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of each 16, made for 16-bit elements. The four
// neighbours that a register needs here are with the lanes 2 t % 4 and 2 t % 4 + 1 of row g: their bytes 0 and 2 (columns
// 2 t, 2 t + 1) for t < 2, else 1 and 3 (2 t + 8, 2 t + 9). A byte holds one code of 8 bits, or two of 4: row g in its low
// nibble, row g + 8 in its high one.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook {

// The codes of columns 4 t .. 4 t + 3, from the words of the two lanes that hold them.
__device__ __forceinline__ u32 neighbours(u32 first, u32 second, i32 t) {
  return __byte_perm(first, second, t < 2 ? 0x6420 : 0x7531);
}

// Four codes, one in each byte (of 4 bits in its low nibble), as elements of Activation: values times `unit`. Those with zero
// points take them too, in each byte.
template <class Activation, class Weight>
struct Narrow;

// e4m3fn spaces its subnormal and smallest normal numbers evenly: the bits 0..15 are code * 2^-9. With its sign apart, code - 8
// is such a number of magnitude 0..8: code ^ 8 where the code is 8 or more, else ((code ^ 8) ^ 15) + 1 = 8 - code, negative.
template <>
struct Narrow<e4m3fn, u4b8> {
  static constexpr float unit = 1.f / 512;
  static __device__ __forceinline__ u32 run(u32 codes) {
    const u32 negative = ~(codes >> 3) & 0x01010101u;
    return (codes ^ (negative * 15) ^ 0x08080808u) + negative * 0x81;  // + 1, and the sign
  }
};

// So is code - zero, of magnitude 0..15. 128 + code - zero borrows from no neighbour; below 128 it becomes 128 - it, and the sign.
template <>
struct Narrow<e4m3fn, u4> {
  static constexpr float unit = 1.f / 512;
  static __device__ __forceinline__ u32 run(u32 codes, u32 zeros) {
    const u32 moved = (codes | 0x80808080u) - zeros, negative = ~(moved >> 7) & 0x01010101u;
    return (moved ^ (negative * 0x7f) ^ 0x80808080u) + negative;
  }
};

// Exponent and mantissa of e2m1f are the exponent's low bits and the mantissa's highest of e4m3fn, but for the bias: 1, not 7.
template <>
struct Narrow<e4m3fn, e2m1f> {
  static constexpr float unit = 1.f / 64;
  static __device__ __forceinline__ u32 run(u32 codes) { return (codes & 0x07070707u) << 2 | (codes & 0x08080808u) << 4; }
};

template <>
struct Narrow<e4m3fn, e4m3fn> {
  static constexpr float unit = 1;
  static __device__ __forceinline__ u32 run(u32 codes) { return codes; }
};

// A code in the upper nibble of a byte, its highest bit inverted, is 16 (code - 8).
template <>
struct Narrow<s8, u4b8> {
  static constexpr float unit = 16;
  static __device__ __forceinline__ u32 run(u32 codes) { return codes << 4 ^ 0x80808080u; }
};

// 128 + code - zero borrows from no neighbour; its highest bit inverted, it is code - zero.
template <>
struct Narrow<s8, u4> {
  static constexpr float unit = 1;
  static __device__ __forceinline__ u32 run(u32 codes, u32 zeros) {
    return ((codes | 0x80808080u) - zeros) ^ 0x80808080u;
  }
};

template <>
struct Narrow<s8, u8b128> {
  static constexpr float unit = 1;
  static __device__ __forceinline__ u32 run(u32 codes) { return codes ^ 0x80808080u; }
};

// One fragment from the 4-bit codes of two halves of 16 columns.
template <class Activation, class Weight>
__device__ __forceinline__ Fragment narrow(u32 left, u32 right) {
  using N = Narrow<Activation, Weight>;
  constexpr u32 kLow = 0x0f0f0f0fu;
  return {{N::run(left & kLow), N::run(left >> 4 & kLow), N::run(right & kLow), N::run(right >> 4 & kLow)}};
}

// One fragment from the words of the two lanes that hold its columns: two of 4-bit codes, four of 8-bit ones. `zeros`: the zero
// points of both rows, in each byte, if there are any.
template <class Activation, class Weight>
__device__ __forceinline__ Fragment narrow(const u32* first, const u32* second, i32 t, Rows zeros) {
  using N = Narrow<Activation, Weight>;
  const auto codes = [&](i32 word) { return neighbours(first[word], second[word], t); };
  if constexpr (bits<Weight> == 8) {
    return {{N::run(codes(0)), N::run(codes(1)), N::run(codes(2)), N::run(codes(3))}};
  } else if constexpr (has_zeros<Weight>) {
    constexpr u32 kLow = 0x0f0f0f0fu;
    const u32 left = codes(0), right = codes(1);
    return {{N::run(left & kLow, zeros.upper), N::run(left >> 4 & kLow, zeros.lower), N::run(right & kLow, zeros.upper),
             N::run(right >> 4 & kLow, zeros.lower)}};
  } else {
    return narrow<Activation, Weight>(codes(0), codes(1));
  }
}

}  // namespace billhook
