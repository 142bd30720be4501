// Small floats to fp16 and bf16, exactly, subnormals and signed zeros included: e2m1f and e4m3fn weights as fragments of
// mma.m16n8k16, e4m3fn and e8m0fnu scales as pairs. fp16: SM75+; bf16: SM80+ (no cvt instruction, which SM89 brought for fp16 alone).
//
// A small float and a 16-bit one are sign, exponent, mantissa alike. Its exponent and mantissa moved to where the exponent of
// the 16-bit type ends and its mantissa begins are the same number but for the bias of the exponent, whether normal or
// subnormal: x * 2^(bias - bias of the 16-bit type). One multiplication by a power of two puts that right, exactly:
//
//                                       fp16 (bias 15)             bf16 (bias 127)
//   e2m1f  (bias 1)   bits 2..0 to      11..9, times 2^14          8..6,  times 2^126
//   e4m3fn (bias 7)   bits 6..0 to      13..7, times 2^8           10..4, times 2^120
//
// The sign goes to bit 15. NaN of e4m3fn would become 480; each type has its own way to tell it.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook {

// Bits of `inside` where mask is set, of `outside` elsewhere.
template <u32 mask>
__device__ __forceinline__ u32 select(u32 inside, u32 outside) {
  u32 out;
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(out) : "r"(inside), "r"(outside), "n"(mask));
  return out;
}

// The signs of codes that are `mask` apart. Spelled as an instruction, for the compiler would mask anew behind each shift.
template <u32 mask>
__device__ __forceinline__ u32 signs(u32 v) {
  u32 out;
  asm("and.b32 %0, %1, %2;" : "=r"(out) : "r"(v), "n"(mask));
  return out;
}

// In fp16 a code fills the upper byte alone (s000eem0), so four codes are rearranged at a time.
template <>
struct Dequantize<f16, e2m1f> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    const u32 w = words[0];
    const u32 low = select<0x0e0e0e0eu>(w << 1, signs<0x80808080u>(w << 4));  // registers 0 and 2: lower nibbles
    const u32 high = select<0x0e0e0e0eu>(w >> 3, signs<0x80808080u>(w));        // 1 and 3
    const u32 raw[4] = {__byte_perm(low, 0, 0x2404), __byte_perm(high, 0, 0x2404), low & 0xff00ff00u, high & 0xff00ff00u};
    Fragment f;
#pragma unroll
    for (i32 r = 0; r < 4; ++r) f.r[r] = multiply<f16>(raw[r], 0x74007400u);  // * 2^14
    return f;
  }
};

template <>
struct Dequantize<bf16, e2m1f> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    constexpr u32 kMagnitude = 0x01c001c0u;
    const u32 w = words[0], even = signs<0x08080808u>(w), odd = signs<0x80808080u>(w);
    const u32 raw[4] = {select<kMagnitude>(w << 6, even << 12), select<kMagnitude>(w << 2, odd << 8),
                        select<kMagnitude>(w >> 2, even << 4), select<kMagnitude>(w >> 6, odd)};
    Fragment f;
#pragma unroll
    for (i32 r = 0; r < 4; ++r) f.r[r] = multiply<bf16>(raw[r], 0x7e807e80u);  // * 2^126
    return f;
  }
};

// NaN: its seven bits plus one carry into the sign's place. In fp16 that carry is put above the exponent, which then is 31.
template <>
struct Dequantize<f16, e4m3fn> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    constexpr u32 kMagnitude = 0x7f807f80u;
    Fragment f;
#pragma unroll
    for (i32 h = 0; h < 2; ++h) {
      const u32 w = words[h], sign = signs<0x80808080u>(w);
      const u32 v = select<0x80808080u>(w - sign + 0x01010101u, w);  // the carry, and the seven bits
      f.r[h] = multiply<f16>(select<kMagnitude>(v << 7, sign << 8), 0x5c005c00u);  // * 2^8
      f.r[2 + h] = multiply<f16>(select<kMagnitude>(v >> 1, sign), 0x5c005c00u);
    }
    return f;
  }
};

// NaN: 480 times 1.125 * 2^119 is infinite in bf16, 448 times it is not; x + 0 * that is NaN, or x.
template <>
struct Dequantize<bf16, e4m3fn> {
  static __device__ __forceinline__ u32 value(u32 raw) {
    const u32 x = multiply<bf16>(raw, 0x7b807b80u);  // * 2^120
    return bf16::fma(multiply<bf16>(x, 0x7b107b10u), 0, x);
  }
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    constexpr u32 kMagnitude = 0x07f007f0u;
    Fragment f;
#pragma unroll
    for (i32 h = 0; h < 2; ++h) {
      const u32 w = words[h], sign = signs<0x80808080u>(w);
      f.r[h] = value(select<kMagnitude>(w << 4, sign << 8));
      f.r[2 + h] = value(select<kMagnitude>(w >> 4, sign));
    }
    return f;
  }
};

// The scales of rows g and g + 8 as a pair of T, from a word as it is stored: 16-bit scales fill it, of 8-bit ones it holds
// two pairs, of which `half` says which. Those have no sign, and none is NaN.
template <class T, class Scale>
struct ScalePair {
  static __device__ __forceinline__ u32 of(u32 word, i32) { return word; }
};

// Two bytes of a word as the upper bytes of a pair.
__device__ __forceinline__ u32 upper_bytes(u32 word, i32 half) { return __byte_perm(word, 0, half ? 0x3424 : 0x1404); }

template <>
struct ScalePair<f16, e4m3fn> {
  static __device__ __forceinline__ u32 of(u32 word, i32 half) {
    return multiply<f16>(upper_bytes(word, half) >> 1, 0x5c005c00u);  // * 2^8
  }
};

template <>
struct ScalePair<bf16, e4m3fn> {
  static __device__ __forceinline__ u32 of(u32 word, i32 half) {
    return multiply<bf16>(upper_bytes(word, half) >> 4, 0x7b807b80u);  // * 2^120
  }
};

// The code is the exponent of bf16, which would be 0 for code 0: the largest of that and 2^-127, a subnormal, is right.
template <>
struct ScalePair<bf16, e8m0fnu> {
  static __device__ __forceinline__ u32 of(u32 word, i32 half) {
    return bf16::max(upper_bytes(word, half) >> 1, 0x00400040u);
  }
};

}  // namespace billhook
