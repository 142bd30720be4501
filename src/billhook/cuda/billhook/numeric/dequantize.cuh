// From packed integer codes to one row-operand fragment of mma.m16n8k16: four registers of two 16-bit values, exact integers
// (code - zero) without their scale. Small floats: minifloat.cuh. fp16: SM75+; bf16: SM80+.
//
// Words hold codes as docs/layout.md has them. Of 4 bits, one word a fragment: `word >> 4 r` holds the codes of register r in
// bits 0..3 and 16..19. Of 8 bits, two words, the first for row g (registers 0 and 2), the second for row g + 8 (1 and 3):
// `word >> 8 q` holds those of its register q in bits 0..7 and 16..23.
#pragma once
#include "billhook/numeric/elements.cuh"
#include "billhook/numeric/float16.cuh"

namespace billhook {

struct Fragment {
  u32 r[4];
};

// One value for row g and one for row g + 8, each in both halves of a register.
struct Rows {
  u32 upper, lower;

  // `pair`: that of row g in the low half.
  static __device__ __forceinline__ Rows of(u32 pair) { return {broadcast_low(pair), broadcast_high(pair)}; }
};

// Multiplies each value by its row's scale, rounded once; `pair`: the scales of rows g and g + 8, in registers 0, 2 and 1, 3.
template <class T>
__device__ __forceinline__ void scale_rows(Fragment& f, u32 pair) {
  const Rows scales = Rows::of(pair);
  f.r[0] = multiply<T>(f.r[0], scales.upper), f.r[2] = multiply<T>(f.r[2], scales.upper);
  f.r[1] = multiply<T>(f.r[1], scales.lower), f.r[3] = multiply<T>(f.r[3], scales.lower);
}

template <u32 mask, u32 exponent>
__device__ __forceinline__ u32 mask_or(u32 v) {
  u32 out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "n"(mask), "n"(exponent));  // (v & mask) | exponent
  return out;
}

// Codes of `bits` bits as values of T, plus a number for each row: Integers<T, bits>::plus. What is added must be minus the
// zero point, moved as `shift` says; `zeros` does both for a pair of zero points.
template <class T, i32 bits>
struct Integers;

// A code or-ed into the low mantissa bits of 2^7 is the bf16 number 128 + code; 128 + zero is taken away exactly.
template <>
struct Integers<bf16, 4> {
  static __device__ __forceinline__ Rows zeros(u32 pair) {
    return Rows::of(bf16::fma(pair, 0xbf80bf80u, 0xc300c300u));  // -zero - 128
  }
  static __device__ __forceinline__ Fragment plus(const u32* words, Rows zeros) {
    Fragment f;
#pragma unroll
    for (i32 r = 0; r < 4; ++r) {
      const u32 biased = mask_or<0x000f000fu, 0x43004300u>(words[0] >> (4 * r));
      f.r[r] = bf16::fma(biased, 0x3f803f80u, r % 2 ? zeros.lower : zeros.upper);  // * 1
    }
    return f;
  }
};

// fp16 has three mantissa bits more: bits 4..7 are reached in place as 1024 + 16 code, so two registers need one shift. They
// are those of one column in both rows: row g adds -1024 - zero, row g + 8 divides by 16 and adds -64 - zero.
template <>
struct Integers<f16, 4> {
  static __device__ __forceinline__ Rows zeros(u32 pair) {
    return Rows::of(f16::fma(pair, 0xbc00bc00u, 0xd400e400u));  // -zero - 1024, -zero - 64
  }
  static __device__ __forceinline__ Fragment plus(const u32* words, Rows zeros) {
    Fragment f;
#pragma unroll
    for (i32 r = 0; r < 4; r += 2) {
      const u32 codes = words[0] >> (4 * r);
      f.r[r] = f16::fma(mask_or<0x000f000fu, 0x64006400u>(codes), 0x3c003c00u, zeros.upper);      // * 1
      f.r[r + 1] = f16::fma(mask_or<0x00f000f0u, 0x64006400u>(codes), 0x2c002c00u, zeros.lower);  // / 16
    }
    return f;
  }
};

// A code or-ed into the low mantissa bits of 2^10 is the fp16 number 1024 + code.
template <>
struct Integers<f16, 8> {
  static __device__ __forceinline__ Rows zeros(u32 pair) {
    return Rows::of(f16::fma(pair, 0xbc00bc00u, 0xe400e400u));  // -zero - 1024
  }
  static __device__ __forceinline__ Fragment plus(const u32* words, Rows zeros) {
    Fragment f;
#pragma unroll
    for (i32 h = 0; h < 2; ++h) {
      const u32 minus = h ? zeros.lower : zeros.upper;
      f.r[h] = f16::fma(mask_or<0x00ff00ffu, 0x64006400u>(words[h]), 0x3c003c00u, minus);                // bytes 0 and 2
      f.r[2 + h] = f16::fma(__byte_perm(words[h], 0x64646464u, 0x4341), 0x3c003c00u, minus);  // 1 and 3
    }
    return f;
  }
};

// bf16 has 7 mantissa bits, one too few for 128 + code. But its subnormal and its smallest normal numbers are equally spaced:
// the bits 0..255 are code * 2^-133. One fma multiplies by 2^127 and adds -zero * 2^-6, both without rounding, for the
// difference has 8 bits; another multiplies by 2^6.
template <>
struct Integers<bf16, 8> {
  static __device__ __forceinline__ Rows zeros(u32 pair) {
    return Rows::of(multiply<bf16>(pair, 0xbc80bc80u));  // -zero / 64
  }
  static __device__ __forceinline__ Fragment plus(const u32* words, Rows zeros) {
    Fragment f;
#pragma unroll
    for (i32 h = 0; h < 2; ++h) {
      const u32 minus = h ? zeros.lower : zeros.upper;
      const u32 low = words[h] & 0x00ff00ffu, high = __byte_perm(words[h], 0, 0x4341);  // bytes 0 and 2, 1 and 3
      f.r[h] = multiply<bf16>(bf16::fma(low, 0x7f007f00u, minus), 0x42804280u);         // * 2^127 - zero / 64, * 64
      f.r[2 + h] = multiply<bf16>(bf16::fma(high, 0x7f007f00u, minus), 0x42804280u);
    }
    return f;
  }
};

// A weight format is one specialisation: `run` takes bits<Weight> / 4 words and the zero points of rows g and g + 8, as a
// pair of Activation; those of formats without zero points do not matter.
template <class Activation, class Weight>
struct Dequantize;

// -(zero + 128) for bf16; -(zero + 1024) and -(zero + 64) for fp16, with the zero point 8.
template <>
struct Dequantize<bf16, u4b8> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    return Integers<bf16, 4>::plus(words, {0xc308c308u, 0xc308c308u});
  }
};
template <>
struct Dequantize<f16, u4b8> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    return Integers<f16, 4>::plus(words, {0xe408e408u, 0xd480d480u});
  }
};

// -128 / 64 for bf16; -(128 + 1024) for fp16.
template <>
struct Dequantize<bf16, u8b128> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    return Integers<bf16, 8>::plus(words, {0xc000c000u, 0xc000c000u});
  }
};
template <>
struct Dequantize<f16, u8b128> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32) {
    return Integers<f16, 8>::plus(words, {0xe480e480u, 0xe480e480u});
  }
};

template <class T>
struct Dequantize<T, u4> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32 zeros) {
    return Integers<T, 4>::plus(words, Integers<T, 4>::zeros(zeros));
  }
};
template <class T>
struct Dequantize<T, u8> {
  static __device__ __forceinline__ Fragment run(const u32* words, u32 zeros) {
    return Integers<T, 8>::plus(words, Integers<T, 8>::zeros(zeros));
  }
};

}  // namespace billhook
