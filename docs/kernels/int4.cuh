// From 4-bit codes to the row operand: what step 4 adds, and steps 5 and 6 keep.
#pragma once
#include "tile.cuh"

constexpr int kGroup = 128;                           // input features that share a scale: two stages
constexpr u32 kCodeBytes = kFeatures * kDepth / 2;    // 2 KiB for a strip of 64 output features and one stage
constexpr u32 kScaleBytes = kFeatures * sizeof(bf16);  // 128 bytes for a strip and one group

// Codes and scales are packed as docs/layout.md says: a lane finds the codes of its four fragments of a stage (16 rows x 64
// columns) in 16 contiguous bytes, one word a fragment, and the scales of rows g and g + 8 of warp w side by side.
DEVICE u32 codes_at(int warp, int lane) { return (warp * 32 + lane) * 16; }
DEVICE u32 scales_at(int warp, int lane) { return (8 * (lane / 4) + 2 * warp) * sizeof(bf16); }

// One word to one fragment: (code - 8) * scale, eight weights in 4 x (shift, LOP3, FMA, FMA).
//
// Nibbles r and r + 4 of the word are the two columns of register r, so word >> 4 r has them in the low bits of both
// halves. bf16 has 7 mantissa bits: 0x4300 = 0 10000110 0000000 is 2^(134 - 127) = 128, whose last mantissa bit is worth 1,
// and or-ing a code in there gives 128 + code exactly. Times 1 (0x3f80) plus -136 (0xc308: -(128 + 8)) gives code - 8,
// exactly. The product with the scale (plus -0, 0x8000, which changes no sum) is the only rounding. One FMA of
// scale and -136 scale would not do: the second is rounded before.
DEVICE void dequantize(u32 (&weights)[4], u32 word, u32 scales) {
  const u32 row[2] = {__byte_perm(scales, 0, 0x1010), __byte_perm(scales, 0, 0x3232)};  // low half twice, high half twice
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const u32 biased = and_or<0x000f000fu, 0x43004300u>(word >> 4 * r);
    const u32 value = fma_bf16x2(biased, 0x3f803f80u, 0xc308c308u);
    weights[r] = fma_bf16x2(value, row[r % 2], 0x80008000u);  // registers 0 and 2: row g; 1 and 3: row g + 8
  }
}
