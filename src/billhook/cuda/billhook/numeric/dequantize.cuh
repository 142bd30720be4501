// From a word of packed codes to one row-operand fragment of mma.m16n8k16: four registers of two 16-bit values, exact
// integers (code - bias) without their scale. `word >> 4 r` holds the codes of register r in bits 0..3 and 16..19
// (docs/layout.md). A new weight format is one more specialisation here. SM80+.
#pragma once
#include "billhook/numeric/float16.cuh"

namespace billhook {

struct u4b8 {};  // 4-bit code, value code - 8 (GPTQ)

struct Fragment {
  u32 r[4];
};

// Multiplies each value by its row's scale, rounded once; `pair`: the scales of rows g and g + 8, in registers 0, 2 and 1, 3.
template <class T>
__device__ __forceinline__ void scale_rows(Fragment& f, u32 pair) {
  const u32 upper = broadcast_low(pair), lower = broadcast_high(pair);
  f.r[0] = multiply<T>(f.r[0], upper), f.r[2] = multiply<T>(f.r[2], upper);
  f.r[1] = multiply<T>(f.r[1], lower), f.r[3] = multiply<T>(f.r[3], lower);
}

template <u32 mask, u32 exponent>
__device__ __forceinline__ u32 mask_or(u32 v) {
  u32 out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "n"(mask), "n"(exponent));  // (v & mask) | exponent
  return out;
}

template <class Activation, class Weight>
struct Dequantize;

// A code or-ed into the low mantissa bits of 2^7 is the bf16 number 128 + code; 136 is taken away exactly.
template <>
struct Dequantize<bf16, u4b8> {
  static __device__ __forceinline__ Fragment run(u32 word) {
    Fragment f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const u32 biased = mask_or<0x000f000fu, 0x43004300u>(word >> (4 * r));
      f.r[r] = bf16::fma(biased, 0x3f803f80u, 0xc308c308u);  // * 1 - 136
    }
    return f;
  }
};

// fp16 has three mantissa bits more: bits 4..7 are reached in place as 1024 + 16 code, so two registers need one shift.
template <>
struct Dequantize<f16, u4b8> {
  static __device__ __forceinline__ Fragment run(u32 word) {
    Fragment f;
#pragma unroll
    for (int r = 0; r < 4; r += 2) {
      const u32 codes = word >> (4 * r);
      f.r[r] = f16::fma(mask_or<0x000f000fu, 0x64006400u>(codes), 0x3c003c00u, 0xe408e408u);      // * 1 - 1032
      f.r[r + 1] = f16::fma(mask_or<0x00f000f0u, 0x64006400u>(codes), 0x2c002c00u, 0xd480d480u);  // / 16 - 72
    }
    return f;
  }
};

}  // namespace billhook
