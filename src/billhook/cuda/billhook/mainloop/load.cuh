// Brings one pipeline stage (codes, scales, zero points, activations) into shared memory.
//
// Codes, scales and zero points of a stage are contiguous runs, one per strip of 64 output features. From SM90 on one thread
// moves them by bulk copies that complete on the stage's mbarrier; before, all threads share them by cp.async. Activations are
// gathered by cp.async, by all threads: their rows may lie anywhere (MoE), and one bulk copy per row, or one warp for all
// rows, is slower (docs/decisions/marlin-kernel.md). Rows and columns that do not exist become zeros. The kernel's Config
// says where in a stage everything goes.
#pragma once
#include "billhook/problem/layout.cuh"
#include "billhook/problem/params.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/schedule/stream_k.cuh"

namespace billhook {

// The expert whose weights a tile needs: 0 if dense, -1 if the block is to be skipped.
template <class C>
__device__ __forceinline__ i32 expert_of(const GemmParams& p, i32 tile_m) {
  return C::indexed ? p.expert_ids[tile_m / (C::expert_rows / C::tile_m)] : 0;
}

// The row of D at row `row` of a tile; from m on: there is none.
template <class C>
__device__ __forceinline__ i32 row_id(const GemmParams& p, i32 tile_m, i32 row) {
  const i32 place = tile_m * C::tile_m + row;
  return C::indexed ? p.sorted_token_ids[place] : place;
}

// The same; -1 where there is none.
template <class C>
__device__ __forceinline__ i32 output_row(const GemmParams& p, i32 tile_m, i32 row) {
  const i32 id = row_id<C>(p, tile_m, row);
  return id < p.m ? id : -1;
}

template <class C>
struct Loader {
  static constexpr i32 element_bytes = bits<typename C::Activation> / 8;
  static constexpr i32 chunks_per_row = C::tile_k * element_bytes / 16;  // a thread always copies the same chunk of its rows
  static constexpr i32 row_step = C::threads / chunks_per_row;
  static constexpr i32 rows_per_thread = (C::tile_m + row_step - 1) / row_step;
  static_assert(C::threads % chunks_per_row == 0, "a row must not straddle the threads");

  const GemmParams& p;
  const StreamK& line;
  const u32 shared;
  Position next;  // the next stage to load
  i32 strips;     // of the tile; 0 skips it
  u32 strip;      // index of the first one among those of all experts
  i32 rows[rows_per_thread];  // this thread's rows of A; -1: zeros

  __device__ __forceinline__ Loader(const GemmParams& p_, const StreamK& line_, u32 shared_, i32 begin)
      : p(p_), line(line_), shared(shared_), next(line_.position(begin)) {
    enter_tile();
  }

  __device__ __forceinline__ i32 chunk() const { return threadIdx.x % chunks_per_row; }
  __device__ __forceinline__ i32 row(i32 i) const { return threadIdx.x / chunks_per_row + i * row_step; }

  // For dense layers this reads no memory.
  __device__ __forceinline__ void enter_tile() {
    const i32 expert = expert_of<C>(p, next.tile_m), first = next.tile_n * C::strips;
    strips = expert < 0 ? 0 : min(C::strips, p.strips - first);
    strip = expert * p.strips + first;
#pragma unroll
    for (i32 i = 0; i < rows_per_thread; ++i) {
      const bool there = expert >= 0 && row(i) < C::tile_m;
      const i32 output = there ? output_row<C>(p, next.tile_m, row(i)) : -1;
      rows[i] = output >= 0 && C::indexed ? output / p.top_k : output;
    }
  }

  // Steps to the next stage; past the last one nothing may be loaded.
  __device__ __forceinline__ void advance(bool more) {
    if (line.advance(next) && more) enter_tile();
  }

  __device__ __forceinline__ void load_weights(i32 slot) const {
    constexpr i32 kCodes = block_bytes<typename C::Weight>, kScales = row_bytes<typename C::Scale>;
    constexpr i32 kZeros = row_bytes<typename C::Output>;
    const u32 stage = shared + slot * C::stage_bytes, codes_to = stage + C::codes_at, scales_to = stage + C::scales_at;
    const i32 block = next.stage * C::blocks, group = C::channel_scales ? 0 : block * kStrip / C::group_size;
    const u32 code_run = min(C::blocks, p.blocks - block) * kCodes;
    const u32 scale_run = C::channel_scales ? 0 : min(C::groups_per_stage, p.groups - group) * kScales;
    const u32 zero_run = C::zero_groups == 0 ? 0 : min(C::zero_groups, p.groups - group) * kZeros;
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x != 0) return;
    const u32 barrier = shared + C::barriers_at + 8 * slot;
    ptx::mbarrier_arrive_expect(barrier, strips * (code_run + scale_run + zero_run));
    const auto copy = [&](u32 to, const char* from, u32 bytes) { ptx::bulk_copy(to, from, bytes, barrier); };
#else
    const auto copy = [&](u32 to, const char* from, u32 bytes) {
      for (u32 at = threadIdx.x * 16; at < bytes; at += C::threads * 16) ptx::cp_async_16(to + at, from + at, 16);
    };
#endif
#pragma unroll
    for (i32 s = 0; s < C::strips; ++s) {
      if (s >= strips) break;
      copy(codes_to + s * (C::blocks * kCodes),
           reinterpret_cast<const char*>(p.codes) + (static_cast<u64>(strip + s) * p.blocks + block) * kCodes, code_run);
      if constexpr (!C::channel_scales)
        copy(scales_to + s * (C::groups_per_stage * kScales),
             static_cast<const char*>(p.scales) + (static_cast<u64>(strip + s) * p.groups + group) * kScales, scale_run);
      if constexpr (C::zero_groups > 0)
        copy(stage + C::zeros_at + s * (C::zero_groups * kZeros),
             static_cast<const char*>(p.zeros) + (static_cast<u64>(strip + s) * p.groups + group) * kZeros, zero_run);
    }
  }

  __device__ __forceinline__ void load_activations(i32 slot) const {
    const i32 k = next.stage * C::tile_k + chunk() * (16 / element_bytes);
    const u32 to = shared + slot * C::stage_bytes + C::activations_at;
    const char* const from = static_cast<const char*>(p.a) + (k < p.k ? k * element_bytes : 0);
#pragma unroll
    for (i32 i = 0; i < rows_per_thread; ++i) {
      if (C::tile_m % row_step != 0 && row(i) >= C::tile_m) break;
      const bool there = k < p.k && rows[i] >= 0;
      ptx::cp_async_16(to + C::activation_at(row(i), chunk()), from + static_cast<i64>(there ? rows[i] : 0) * (p.lda * element_bytes),
                       there ? 16 : 0);
    }
  }
};

}  // namespace billhook
