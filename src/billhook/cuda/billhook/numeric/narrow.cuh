// From packed 4-bit codes to fragments of 8-bit elements (m16n8k32, and warp by warp m64nNk32): register 0 holds row g, columns
// 4 t .. 4 t + 3 of a step of 32, register 1 row g + 8, registers 2 and 3 the same 16 columns on. SM90.
//
// The packed layout gives lane (g, t) columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of each 16, made for 16-bit elements. The four
// neighbours that a register needs here are with the lanes 2 t % 4 and 2 t % 4 + 1 of row g: their bytes 0 and 2 (columns
// 2 t, 2 t + 1) for t < 2, else 1 and 3 (2 t + 8, 2 t + 9); each byte holds row g in its low nibble, row g + 8 in its high one.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook {

// The codes of columns 4 t .. 4 t + 3, from the words of the two lanes that hold them.
__device__ __forceinline__ u32 neighbours(u32 first, u32 second, i32 t) {
  return __byte_perm(first, second, t < 2 ? 0x6420 : 0x7531);
}

// Four codes, one in the low nibble of each byte, as elements of Activation: values times `unit`.
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

// A code in the upper nibble of a byte, its highest bit inverted, is 16 (code - 8).
template <>
struct Narrow<s8, u4b8> {
  static constexpr float unit = 16;
  static __device__ __forceinline__ u32 run(u32 codes) { return codes << 4 ^ 0x80808080u; }
};

// One fragment from the codes of two halves of 16 columns.
template <class Activation, class Weight>
__device__ __forceinline__ Fragment narrow(u32 left, u32 right) {
  using N = Narrow<Activation, Weight>;
  constexpr u32 kLow = 0x0f0f0f0fu;
  return {{N::run(left & kLow), N::run(left >> 4 & kLow), N::run(right & kLow), N::run(right >> 4 & kLow)}};
}

}  // namespace billhook
