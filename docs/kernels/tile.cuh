// What all steps share: the shape that one warpgroup multiplies, how its operands lie in shared memory, and where its sums
// lie in registers.
//
// wgmma computes D[64 x N] += A[64 x 16] B[16 x N]. Its row count is fixed, its column count is any multiple of 8. So output
// features are the rows and tokens the columns: what is computed is D^T = W X^T, with W [n, k] the weights and X [m, k] the
// activations. Few tokens then waste few columns (step 1 would waste rows otherwise), and the operand that may come from
// registers, A, is the one that needs work before it can be multiplied: the weights (step 3).
#pragma once
#include "ptx.cuh"

constexpr int kFeatures = 64;  // rows of one wgmma
constexpr int kTokens = 128;   // columns: 128 tokens fill 64 accumulators of each thread
constexpr int kDepth = 64;     // input features of one pipeline stage: 64 bf16 are the 128 bytes of a swizzled row

constexpr u32 kRowBytes = kDepth * sizeof(bf16);
constexpr u32 kTokenBytes = kTokens * kRowBytes;  // activations of one stage: 16 KiB

// Where 16-byte chunk `chunk` of row `row` lies in a tile of 128-byte rows with the 128-byte swizzle: address bits 4..6 are
// XORed with bits 7..9. Eight rows of one column then lie in eight different groups of four banks.
DEVICE u32 swizzled(int row, int chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }

// The descriptor of such a tile ("Matrix-Descriptor Format"): addresses and offsets in units of 16 bytes.
//   bits  0..13  address
//   bits 16..29  offset between core matrices along k; not used with this swizzle, and to be 1
//   bits 32..45  offset between groups of eight rows: 8 x 128 = 1024 bytes
//   bits 62..63  1: 128-byte swizzle
// 16 elements further along k: the address plus 32 bytes (two units); the hardware swizzles the sum.
constexpr u64 kStepK = 32 >> 4;
DEVICE u64 descriptor(u32 address) {
  return 1ull << 62 | static_cast<u64>(8 * kRowBytes >> 4) << 32 | 1ull << 16 | (address & 0x3ffff) >> 4;
}

// Stores the sums of one warpgroup: `feature` and `token` are those of the tile's corner, d is [m, n]. Warp w holds rows
// 16 w .. 16 w + 15; its lane 4 g + t holds, for every eight tokens j, rows g and g + 8 of tokens 8 j + 2 t and + 1.
DEVICE void store_tile(const float (&sums)[64], bf16* d, int feature, int token, int m, int n) {
  const int thread = threadIdx.x % 128, lane = thread % 32;
  feature += thread / 32 * 16 + lane / 4;
  token += lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const float* sum = sums + 4 * j;
    const int row = token + 8 * j;
    bf16* to = d + static_cast<long long>(row) * n + feature;
    if (row < m) to[0] = to_bf16(sum[0]), to[8] = to_bf16(sum[2]);
    if (row + 1 < m) to[n] = to_bf16(sum[1]), to[n + 8] = to_bf16(sum[3]);
  }
}
