// The producer side of the Machete mainloop: one warpgroup fills the stages of the pipeline. SM90.
//
// Codes, scales and zero points of a stage are contiguous runs, one per strip: bulk copies. Activations of dense layers, and of
// MoE layers whose rows have been grouped by expert, come as boxes of a 2-D tensor (TMA), swizzled as wgmma reads them; the CTAs
// of a cluster, which compute the same tokens, fetch a part each and send it to all. Rows that are looked up (MoE) are gathered
// by cp.async, by the whole warpgroup.
#pragma once
#include "billhook/mainloop/load.cuh"
#include "billhook/ptx/grid.cuh"
#include "billhook/schedule/waves.cuh"

namespace billhook {

#if __CUDA_ARCH__ >= 900
template <class C>
struct Producer {
  using T = typename C::Output;
  using Weight = typename C::Weight;
  using Scale = typename C::Scale;

  const GemmParams& p;
  const void* map;  // tensor map of A; null where rows are gathered
  const u32 shared;
  const i32 rank, thread;  // of this CTA in its cluster, of this thread in the warpgroup
  Segment at;
  i32 slot = 0;
  u32 parity = 1;  // a fresh barrier lets pass who waits for the phase before its first

  // Fills the stages of all segments.
  __device__ __forceinline__ void run(Walk walk) {
    if constexpr (C::gathers)
      while (walk.next(at)) gather();
    else if (thread == 0 && walk.next(at)) {
      fetch(request_early());
      while (walk.next(at)) fetch(0);
    }
  }

 private:
  __device__ __forceinline__ u32 full(i32 slot) const { return shared + C::full_at + 8 * slot; }
  __device__ __forceinline__ u32 stage(i32 slot) const { return shared + slot * C::stage_bytes; }
  __device__ __forceinline__ void wait_empty() const { ptx::mbarrier_wait(shared + C::empty_at + 8 * slot, parity); }

  __device__ __forceinline__ void next_slot() {
    if (++slot == C::stages) {
      slot = 0;
      parity ^= 1;
    }
  }

  // Weights do not depend on the kernel before: those of the first stages are requested before waiting for it. Returns how
  // many stages of the segment that fills.
  __device__ __forceinline__ i32 request_early() {
    const i32 early = min(at.count, C::stages), expert = expert_of<C>(p, at.tile_m);
    for (i32 i = 0; i < early; ++i) request_weights(i, at.stage + i, expert, kActivationBytes);
    ptx::wait_for_prerequisites();
    for (i32 i = 0; i < early; ++i, next_slot()) request_activations(at.stage + i);
    return early;
  }

  __device__ __forceinline__ void fetch(i32 first) {
    const i32 expert = expert_of<C>(p, at.tile_m);
    for (i32 i = first; i < at.count; ++i, next_slot()) {
      wait_empty();
      request_weights(slot, at.stage + i, expert, kActivationBytes);
      request_activations(at.stage + i);
    }
  }

  static constexpr u32 kActivationBytes = C::codes_at;

  // Requests codes, scales and zero points, and tells the barrier of them and of `others` bytes that will come.
  __device__ __forceinline__ void request_weights(i32 slot, i32 k_stage, i32 expert, u32 others) const {
    const i32 first = (at.tile_n * C::cluster + rank) * C::strips;
    const i32 strips = expert < 0 ? 0 : max(0, min(C::strips, p.strips - first));
    const u32 strip = expert * p.strips + first;
    const i32 block = k_stage * C::blocks, group = C::channel_scales ? 0 : block * kStrip / C::group_size;
    const u32 code_run = min(C::blocks, p.blocks - block) * block_bytes<Weight>;
    const i32 groups = C::channel_scales ? 1 : min(C::groups_per_stage, p.groups - group);
    const u32 scale_run = C::channel_scales ? 0 : groups * row_bytes<Scale>;
    const u32 zero_run = has_zeros<Weight> ? groups * row_bytes<T> : 0;
    ptx::mbarrier_arrive_expect(full(slot), strips * (code_run + scale_run + zero_run) + others);
    const auto copy = [&](u32 to, const void* from, u64 at, u32 bytes) {
      ptx::bulk_copy(stage(slot) + to, static_cast<const char*>(from) + at, bytes, full(slot));
    };
#pragma unroll
    for (i32 s = 0; s < C::strips; ++s) {
      if (s >= strips) break;
      const u64 row = static_cast<u64>(strip + s) * p.groups + group;
      copy(C::codes_at + s * (C::blocks * block_bytes<Weight>), p.codes,
           (static_cast<u64>(strip + s) * p.blocks + block) * block_bytes<Weight>, code_run);
      if constexpr (!C::channel_scales)
        copy(C::scales_at + s * (C::groups_per_stage * row_bytes<Scale>), p.scales, row * row_bytes<Scale>, scale_run);
      if constexpr (has_zeros<Weight>)
        copy(C::zeros_at + s * (C::zero_groups * row_bytes<T>), p.zeros, row * row_bytes<T>, zero_run);
    }
  }

  // This CTA's part of the tokens, for all CTAs of the cluster.
  __device__ __forceinline__ void request_activations(i32 k_stage) const {
    constexpr i32 rows = C::tile_m / C::cluster;
#pragma unroll
    for (i32 block = 0; block < C::tile_k / C::chunk; ++block) {
      const u32 to = stage(slot) + C::activations_at + (block * C::tile_m + rank * rows) * 128;
      const i32 x = k_stage * C::tile_k + block * C::chunk, y = at.tile_m * C::tile_m + rank * rows;
      if constexpr (C::cluster > 1)
        ptx::tensor_copy_multicast(to, map, x, y, full(slot), (1 << C::cluster) - 1);
      else
        ptx::tensor_copy(to, map, x, y, full(slot));
    }
  }

  static constexpr i32 row_step = 128 / 8;  // eight threads copy a row of 64 features
  static constexpr i32 rows_per_thread = C::tile_m / row_step;

  __device__ __forceinline__ void gather() {
    const i32 expert = p.expert_ids[at.tile_m];
    i32 rows[rows_per_thread];  // of A; -1: zeros
#pragma unroll
    for (i32 i = 0; i < rows_per_thread; ++i) {
      const i32 row = expert < 0 ? -1 : output_row<C>(p, at.tile_m, thread / 8 + i * row_step);
      rows[i] = row < 0 ? -1 : row / p.top_k;
    }
    for (i32 s = at.stage; s < at.stage + at.count; ++s, next_slot()) {
      wait_empty();
      if (thread == 0) request_weights(slot, s, expert, 0);
#pragma unroll
      for (i32 block = 0; block < C::blocks; ++block) {
        const i32 chunk = thread % 8, k = s * C::tile_k + block * kStrip + chunk * 8;
        const char* const from = static_cast<const char*>(p.a) + (k < p.k ? k * 2 : 0);
        const u32 to = stage(slot) + C::activations_at + (block * C::tile_m + thread / 8) * 128 +
                       (chunk ^ thread / 8 % 8) * 16;
#pragma unroll
        for (i32 i = 0; i < rows_per_thread; ++i) {
          const bool there = k < p.k && rows[i] >= 0;
          ptx::cp_async_16(to + i * row_step * 128, from + static_cast<i64>(there ? rows[i] : 0) * (p.lda * 2),
                           there ? 16 : 0);
        }
      }
      ptx::mbarrier_arrive_copied(full(slot));
    }
  }
};
#endif

}  // namespace billhook
