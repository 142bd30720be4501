// Weights of 4 bits times the scale of their group, rounded to e4m3fn (docs/numerics.md, "w4a8"). Codes have sixteen values, so
// a group's weights are looked up in a table of sixteen bytes that is made once for each row and group. SM89+.
//
// Codes are packed for the lookup (docs/layout.md): a word holds columns 4 t .. 4 t + 3 of a half step of 16, those of row g in
// its low half, of row g + 8 in its high one. Four codes are four selectors of a PRMT, which looks up four of eight bytes; the
// highest bit of a code, which would ask for the sign instead, tells which of two lookups is meant.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook {

// Four bytes of eight, by nibbles of which the highest bit must be clear. __byte_perm would clear it once more, and what lies above.
__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 selectors) {
  u32 v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(low), "r"(high), "r"(selectors));
  return v;
}

// (v & kept) | set, which the compiler would split where both are constants: an instruction holds one.
__device__ __forceinline__ u32 keep_and_set(u32 v, u32 kept, u32 set) {
  u32 out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "r"(kept), "r"(set));
  return out;
}

// Four numbers, each once in fp16 and rounded, from the lowest byte on.
__device__ __forceinline__ u32 to_e4m3(u32 low, u32 high) {
  u32 v;
  asm("{ .reg .b16 l, h;\ncvt.rn.satfinite.e4m3x2.f16x2 l, %1;\ncvt.rn.satfinite.e4m3x2.f16x2 h, %2;\nmov.b32 %0, {l, h}; }"
      : "=r"(v)
      : "r"(low), "r"(high));
  return v;
}

// The weights of one row and group by their codes, a byte each: 0..7 (numbers -8 .. -1), 8..15 (0 .. 7).
struct FoldedRow {
  u32 negative[2], positive[2];

  // `scale`: in both halves, fp16. Products of numbers of four bits and scales of four are exact in fp16.
  __device__ __forceinline__ void fill(u32 scale) {
    const auto times = [&](u32 numbers) { return multiply<f16>(scale, numbers); };
    negative[0] = to_e4m3(times(0xc700c800u), times(0xc500c600u));  // -8, -7, -6, -5
    negative[1] = to_e4m3(times(0xc200c400u), times(0xbc00c000u));  // -4, -3, -2, -1
    positive[0] = __byte_perm(negative[1], 0, 0x1234) ^ 0x80808000u;
    positive[1] = __byte_perm(negative[0], negative[1], 0x1234) ^ 0x80808080u;
  }

  // The weights of four codes in the low half of `low_bits`, and which half of the table each is in.
  __device__ __forceinline__ u32 find(u32 low_bits, u32 halves) const {
    return permute(permute(negative[0], negative[1], low_bits), permute(positive[0], positive[1], low_bits), halves);
  }
};

// Those of rows g and g + 8.
struct FoldedRows {
  FoldedRow upper, lower;

  // `scales`: e4m3fn, that of row g in the low byte.
  __device__ __forceinline__ void fill(u32 scales) {
    u32 pair;
    asm("{ .reg .b16 s;\ncvt.u16.u32 s, %1;\ncvt.rn.f16x2.e4m3x2 %0, s; }" : "=r"(pair) : "r"(scales));
    upper.fill(broadcast_low(pair));
    lower.fill(broadcast_high(pair));
  }

  // One fragment from the words of two halves of 16 columns.
  __device__ __forceinline__ Fragment find(u32 left, u32 right) const {
    Fragment f;
    find_half(f.r, left);
    find_half(f.r + 2, right);
    return f;
  }

 private:
  __device__ __forceinline__ void find_half(u32* r, u32 word) const {
    const u32 low_bits = word & 0x77777777u, halves = keep_and_set(word >> 1, 0x44444444u, 0x32103210u);
    r[0] = upper.find(low_bits, halves);
    r[1] = lower.find(low_bits >> 16, halves >> 16);
  }
};

}  // namespace billhook
