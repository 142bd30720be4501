// The producer side of the Marlin mainloop: brings one pipeline stage (codes, scales, activations) into shared memory.
//
// Codes and scales of a stage are contiguous runs per strip of 64 output features. From SM90 on one thread moves them by
// bulk copies that complete on the stage's mbarrier; before, all threads share them by cp.async. Activations are always
// gathered by cp.async: their rows may lie anywhere (MoE), and rows or columns that do not exist become zeros.
#pragma once
#include "billhook/kernel/marlin_config.cuh"
#include "billhook/kernel/params.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/schedule/stream_k.cuh"

namespace billhook::marlin {

// A 16-byte chunk of activations lies at chunk ^ (row % 8) of its row: ldmatrix then meets every bank once.
template <class C>
__device__ __forceinline__ u32 activation_offset(i32 row, i32 chunk) {
  return row * (C::tile_k * 2) + ((chunk ^ (row & 7)) << 4);
}

template <class C>
struct Loader {
  static constexpr i32 chunks_per_row = C::tile_k / 8;
  static constexpr i32 chunks = C::tile_m * chunks_per_row;
  static constexpr i32 chunks_per_thread = (chunks + C::threads - 1) / C::threads;

  const GemmParams& p;
  const StreamK& line;
  const u32 shared;
  Position next;                // the next stage to load
  i32 slot = 0;                 // where it goes
  i32 expert = 0;               // MoE: -1 skips the tile
  i32 rows[chunks_per_thread];  // the rows of A that this thread copies from; -1: zeros

  __device__ __forceinline__ Loader(const GemmParams& p_, const StreamK& line_, u32 shared_, i32 begin)
      : p(p_), line(line_), shared(shared_), next(line_, begin) {}

  __device__ __forceinline__ void find_rows() {
    if constexpr (C::indexed) expert = p.expert_ids[next.tile_m];
#pragma unroll
    for (i32 i = 0; i < chunks_per_thread; ++i) {
      const i32 row = (threadIdx.x + i * C::threads) / chunks_per_row;
      i32 id = next.tile_m * C::tile_m + row;
      if (row >= C::tile_m) {
        id = p.m;
      } else if constexpr (C::indexed) {
        id = expert < 0 ? p.m : p.sorted_token_ids[id];
      }
      rows[i] = id >= p.m ? -1 : C::indexed ? id / p.top_k : id;
    }
  }

  __device__ __forceinline__ void load_weights() const {
    const u32 codes_to = shared + slot * C::stage_bytes;
    const u32 scales_to = codes_to + C::code_bytes + C::activation_bytes;
    const i32 block = next.stage * C::warps_k;
    const i32 strip = next.tile_n * C::warps_n;
    const u32 code_run = min(C::warps_k, p.blocks - block) * kBlockBytes;
    const i32 strips = expert < 0 ? 0 : min(C::warps_n, p.strips - strip);
    const i64 first = static_cast<i64>(expert) * p.strips + strip;
    const char* codes = reinterpret_cast<const char*>(p.codes) + (first * p.blocks + block) * kBlockBytes;
    const i64 code_step = static_cast<i64>(p.blocks) * kBlockBytes;

    const char* scales = nullptr;
    i64 scale_step = 0;
    u32 scale_run = 0;
    if constexpr (!C::channel_scales) {
      const i32 group = block * kStrip / C::group_size;
      scales = reinterpret_cast<const char*>(p.scales) + (first * p.groups + group) * kScaleBytes;
      scale_step = static_cast<i64>(p.groups) * kScaleBytes;
      scale_run = min(C::groups_per_stage, p.groups - group) * kScaleBytes;
    }
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x != 0) return;
    const u32 barrier = shared + C::barriers_at + 8 * slot;
    ptx::mbarrier_arrive_expect(barrier, strips * (code_run + scale_run));
    for (i32 s = 0; s < strips; ++s) {
      ptx::bulk_copy(codes_to + s * (C::warps_k * kBlockBytes), codes + s * code_step, code_run, barrier);
      if constexpr (!C::channel_scales)
        ptx::bulk_copy(scales_to + s * (C::groups_per_stage * kScaleBytes), scales + s * scale_step, scale_run, barrier);
    }
#else
    for (i32 s = 0; s < strips; ++s) {
      for (u32 at = threadIdx.x * 16; at < code_run; at += C::threads * 16)
        ptx::cp_async_16(codes_to + s * (C::warps_k * kBlockBytes) + at, codes + s * code_step + at, 16);
      if constexpr (!C::channel_scales)
        for (u32 at = threadIdx.x * 16; at < scale_run; at += C::threads * 16)
          ptx::cp_async_16(scales_to + s * (C::groups_per_stage * kScaleBytes) + at, scales + s * scale_step + at, 16);
    }
#endif
  }

  __device__ __forceinline__ void load_activations() const {
    const u32 to = shared + slot * C::stage_bytes + C::code_bytes;
    const i32 column = next.stage * C::tile_k;
#pragma unroll
    for (i32 i = 0; i < chunks_per_thread; ++i) {
      const i32 at = threadIdx.x + i * C::threads;
      if (chunks % C::threads != 0 && at >= chunks) break;
      const i32 row = at / chunks_per_row, chunk = at % chunks_per_row;
      const i32 k = column + chunk * 8;
      const bool there = rows[i] >= 0 && k < p.k;
      const i64 from = there ? static_cast<i64>(rows[i]) * p.lda + k : 0;
      ptx::cp_async_16(to + activation_offset<C>(row, chunk), static_cast<const u16*>(p.a) + from, there ? 16 : 0);
    }
  }

  __device__ __forceinline__ void advance() {
    slot = slot + 1 == C::stages ? 0 : slot + 1;
    if (next.advance(line)) find_rows();
  }
};

}  // namespace billhook::marlin
