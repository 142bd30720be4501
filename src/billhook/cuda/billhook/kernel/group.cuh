// Groups the activations of an MoE layer by expert: row i of the result is the row of A that sorted_token_ids[i] asks for.
// So a GEMM can fetch a block of them at once. Rows that pad a block are left as they are. SM75+.
#pragma once
#include "billhook/problem/grouping.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook::group {

constexpr i32 kThreads = 256;

__device__ __forceinline__ void run(const GroupParams& p) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const i32 padded = *p.num_tokens_padded;
  for (i32 row = blockIdx.x; row < padded; row += gridDim.x) {
    const i32 id = p.sorted_token_ids[row];
    if (id >= p.rows) continue;
    const u32x4* const from = p.a + static_cast<i64>(id / p.top_k) * p.stride;
    u32x4* const to = p.grouped + static_cast<i64>(row) * p.chunks;
    for (i32 i = threadIdx.x; i < p.chunks; i += kThreads) to[i] = from[i];
  }
}

}  // namespace billhook::group
