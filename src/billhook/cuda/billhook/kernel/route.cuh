// MoE routing: sorts (token, slot) rows by the expert they visit, in blocks that each belong to one expert. SM75+.
//
// One CTA per expert, and no talk between them: each counts the rows of all experts, so it knows where its own blocks
// begin, then writes its rows there in ascending order (so the result never depends on timing) and fills its last block
// with `count`, a row that does not exist. Ids outside the experts are dropped. `dispatch/routing.py` does the same.
#pragma once
#include "billhook/ptx/grid.cuh"
#include "billhook/ptx/warp.cuh"

namespace billhook::route {

constexpr i32 kThreads = 1024;
constexpr i32 kWarps = kThreads / 32;
constexpr i32 kMaxExperts = kThreads;  // one thread sums up one expert
constexpr i32 kVector = 4;             // ids of one 16-byte load

// Ids at .. at + 3; -1 for those beyond the end. `ids` is aligned to 16 bytes.
__device__ __forceinline__ int4 load_ids(const i32* ids, i32 at, i32 count) {
  if (at + kVector <= count) return *reinterpret_cast<const int4*>(ids + at);
  return make_int4(at < count ? ids[at] : -1, at + 1 < count ? ids[at + 1] : -1, at + 2 < count ? ids[at + 2] : -1, -1);
}

}  // namespace billhook::route

// topk_ids [count]: the expert of each row. sorted_token_ids: room for count + num_experts * (block_m - 1), rounded down
// to blocks; expert_ids: one per block. num_tokens_padded: the used length of sorted_token_ids.
extern "C" __global__ void __launch_bounds__(1024)
    route_tokens(const billhook::i32* topk_ids, billhook::i32 count, billhook::i32 num_experts, billhook::i32 block_m,
                 billhook::i32* sorted_token_ids, billhook::i32* expert_ids, billhook::i32* num_tokens_padded) {
  using namespace billhook;
  using namespace billhook::route;
  __shared__ i32 rows_of[kMaxExperts];
  __shared__ i32 warp_counts[2][kWarps];
  const i32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const i32 expert = blockIdx.x;

  ptx::launch_dependents();
  ptx::wait_for_prerequisites();

  rows_of[thread] = 0;
  __syncthreads();
  for (i32 at = thread * kVector; at < count; at += kThreads * kVector) {
    const int4 v = load_ids(topk_ids, at, count);
    if (static_cast<u32>(v.x) < static_cast<u32>(num_experts)) atomicAdd(&rows_of[v.x], 1);
    if (static_cast<u32>(v.y) < static_cast<u32>(num_experts)) atomicAdd(&rows_of[v.y], 1);
    if (static_cast<u32>(v.z) < static_cast<u32>(num_experts)) atomicAdd(&rows_of[v.z], 1);
    if (static_cast<u32>(v.w) < static_cast<u32>(num_experts)) atomicAdd(&rows_of[v.w], 1);
  }
  __syncthreads();

  const i32 padded = (rows_of[thread] + block_m - 1) / block_m * block_m;
  const i32 before = ptx::warp_sum(thread < expert ? padded : 0);
  if (lane == 0) warp_counts[0][warp] = before;
  __syncthreads();
  const i32 begin = ptx::warp_sum(warp_counts[0][lane]);
  const i32 rows = rows_of[expert];
  const i32 end = begin + (rows + block_m - 1) / block_m * block_m;

  if (expert == num_experts - 1 && thread == 0) *num_tokens_padded = end;
  for (i32 block = begin / block_m + thread; block < end / block_m; block += kThreads) expert_ids[block] = expert;
  for (i32 at = begin + rows + thread; at < end; at += kThreads) sorted_token_ids[at] = count;
  if (rows == 0) return;

  i32* to = sorted_token_ids + begin;
  i32 parity = 1;  // two sets of warp counts: the next step may begin while this one's are still read
  for (i32 first = 0; first < count; first += kThreads * kVector, parity ^= 1) {
    const i32 at = first + thread * kVector;
    const int4 v = load_ids(topk_ids, at, count);
    const bool mine[kVector] = {v.x == expert, v.y == expert, v.z == expert, v.w == expert};
    i32 rank = 0, own = 0;
#pragma unroll
    for (i32 q = 0; q < kVector; ++q) {
      rank += ptx::lanes_below(mine[q]);
      own += mine[q];
    }
    if (lane == 31) warp_counts[parity][warp] = rank + own;
    __syncthreads();
    const i32 in_warp = warp_counts[parity][lane];
    rank += ptx::warp_sum(lane < warp ? in_warp : 0);
#pragma unroll
    for (i32 q = 0; q < kVector; ++q)
      if (mine[q]) to[rank++] = at + q;
    to += ptx::warp_sum(in_warp);
  }
}
