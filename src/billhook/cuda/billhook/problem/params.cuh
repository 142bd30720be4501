// The argument of every GEMM kernel, passed by value. `dispatch/params.py` packs the same struct; keep them equal.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

struct GemmParams {
  const void* a;                        // activations, rows of lda elements
  const u32* codes;                     // packed weights (docs/layout.md)
  const void* scales;                   // packed scales (docs/layout.md)
  const void* zeros;                    // packed zero points beside the scales; for weight types that have them
  const float* channel_scales;          // [E,] n: multiplies a column of D beside group scales; may be null
  const float* token_scales;            // multiplies row id / top_k of A (8-bit activations); may be null
  const float* global_scales;           // [E]: multiplies all of an expert's D (NVFP4, FP8 per tensor); may be null
  const void* bias;                     // [E,] n in the output's type; may be null
  void* d;                              // output, rows of ldd elements
  u32* partials;                        // a slot or two of tile_m x tile_n words a CTA, by family; all ones before and after the launch
  const i32* sorted_token_ids;          // MoE: row ids in blocks of tile_m; an id >= m is padding
  const i32* expert_ids;                // MoE: expert of each block; -1 skips the block
  const i32* num_tokens_padded;         // MoE: one number, the used length of sorted_token_ids
  const float* topk_weights;            // MoE: multiplies row id of D; may be null
  i32 m;                                // rows of D: tokens, or (token, slot) pairs for MoE
  i32 n;                                // output features, a multiple of 16
  i32 k;                                // input features, a multiple of 16
  i32 lda;                              // elements between rows of A, a multiple of 8
  i32 ldd;                              // elements between rows of D, a multiple of 8
  i32 strips;                           // ceil(n / 64)
  i32 blocks;                           // ceil(k / 64)
  i32 groups;                           // scale groups along k (1 for channel scales)
  i32 top_k;                            // MoE: the row of A is id / top_k
  i32 split_k;                          // 1: CTAs may share an output tile; 0: never (batch-invariant)
};

}  // namespace billhook
