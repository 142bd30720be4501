// Groups the activations of an MoE layer by expert: row i of the result is the row of A that sorted_token_ids[i] asks for.
// So a GEMM can fetch a block of them at once. Rows that pad a block are left as they are. SM75+.
//
// A warp copies a part of a row at a time, all of it in flight at once, and looks up whose the next part is meanwhile: rows of
// few tokens are short and many, and to wait for one behind another took longer than to copy them.
#pragma once
#include "billhook/problem/grouping.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook::group {

constexpr i32 kThreads = 256;
constexpr i32 kWarps = kThreads / 32;
constexpr i32 kEach = 4;           // chunks of a lane
constexpr i32 kPart = 32 * kEach;  // chunks of a part

__device__ __forceinline__ void run(const GroupParams& p) {
  ptx::launch_dependents();
  ptx::wait_for_prerequisites();
  const i32 lane = static_cast<i32>(threadIdx.x % 32), warp = static_cast<i32>(threadIdx.x / 32);
  const i32 parts = (p.chunks + kPart - 1) / kPart, all = *p.num_tokens_padded * parts;
  const i32 step = static_cast<i32>(gridDim.x) * kWarps;
  const auto find = [&](i32 part) { return part < all ? p.sorted_token_ids[part / parts] : p.rows; };

  i32 part = static_cast<i32>(blockIdx.x) * kWarps + warp, next_id = find(part);
  for (; part < all; part += step) {
    const i32 id = next_id, row = part / parts, first = part % parts * kPart + lane;
    next_id = find(part + step);
    if (id >= p.rows) continue;
    const u32x4* const from = p.a + static_cast<i64>(id / p.top_k) * p.stride;
    u32x4* const to = p.grouped + static_cast<i64>(row) * p.chunks;
    u32x4 held[kEach];
#pragma unroll
    for (i32 i = 0; i < kEach; ++i)
      if (first + 32 * i < p.chunks) held[i] = from[first + 32 * i];
#pragma unroll
    for (i32 i = 0; i < kEach; ++i)
      if (first + 32 * i < p.chunks) to[first + 32 * i] = held[i];
  }
}

}  // namespace billhook::group
