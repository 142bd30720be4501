// The argument of the kernel that groups the activations of an MoE layer, passed by value. `dispatch/launch.py` packs the
// same struct; keep them equal.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

struct GroupParams {
  const u32x4* a;               // rows of `chunks` x 16 bytes, `stride` chunks apart
  u32x4* grouped;               // rows of `chunks` x 16 bytes
  const i32* sorted_token_ids;  // an id >= rows is padding
  const i32* num_tokens_padded;
  i32 rows, chunks, stride, top_k;
};

}  // namespace billhook
