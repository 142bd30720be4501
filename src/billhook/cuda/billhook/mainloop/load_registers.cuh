// As load.cuh, where there is no asynchronous copy: a stage comes into registers while another is multiplied, and then goes on
// into shared memory. Each warp brings the codes of the block that it multiplies. SM75.
#pragma once
#include "billhook/mainloop/load.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

template <class C>
struct RegisterLoader : Loader<C> {
  using Weight = typename C::Weight;

  // What this thread holds of the next stage, by 16 bytes.
  static constexpr i32 kCodes = block_bytes<Weight> / (32 * 16);
  template <i32 bytes>
  static constexpr i32 count = (bytes / 16 + C::threads - 1) / C::threads;
  static constexpr i32 scale_bytes = C::groups_per_stage * row_bytes<typename C::Scale>;  // of a strip
  static constexpr i32 zero_bytes = C::zero_groups * row_bytes<typename C::Output>;
  static constexpr i32 kScales = count<C::strips * scale_bytes>, kZeros = count<C::strips * zero_bytes>;
  u32x4 codes[kCodes], scales[kScales > 0 ? kScales : 1], zeros[kZeros > 0 ? kZeros : 1], activations[Loader<C>::rows_per_thread];

  using Loader<C>::Loader;

  __device__ __forceinline__ void load_weights(i32) {
    const GemmParams& p = this->p;
    const i32 warp = threadIdx.x / 32, strip = warp / C::blocks, block = this->next.stage * C::blocks + warp % C::blocks;
    const bool there = strip < this->strips && block < p.blocks;
    const u32x4* const from = reinterpret_cast<const u32x4*>(p.codes) +
                              (static_cast<u64>(this->strip + strip) * p.blocks + block) * (kCodes * 32) + threadIdx.x % 32;
#pragma unroll
    for (i32 i = 0; i < kCodes; ++i) codes[i] = there ? from[i * 32] : u32x4{};
    load_rows<scale_bytes, kScales, row_bytes<typename C::Scale>>(scales, p.scales);
    load_rows<zero_bytes, kZeros, row_bytes<typename C::Output>>(zeros, p.zeros);
  }

  __device__ __forceinline__ void load_activations(i32) {
    const i32 k = this->next.stage * C::tile_k + this->chunk() * (16 / Loader<C>::element_bytes);
    const char* const from = static_cast<const char*>(this->p.a) + k * Loader<C>::element_bytes;
#pragma unroll
    for (i32 i = 0; i < Loader<C>::rows_per_thread; ++i) {
      const i32 row = this->rows[i];
      activations[i] = k < this->p.k && row >= 0
                           ? *reinterpret_cast<const u32x4*>(from + static_cast<i64>(row) * (this->p.lda * Loader<C>::element_bytes))
                           : u32x4{};
    }
  }

  // Writes what was loaded last.
  __device__ __forceinline__ void land(i32 slot) const {
    const u32 stage = this->shared + slot * C::stage_bytes;
    const u32 to = stage + C::codes_at + threadIdx.x / 32 * block_bytes<Weight> + threadIdx.x % 32 * 16;
#pragma unroll
    for (i32 i = 0; i < kCodes; ++i) ptx::store_shared(to + i * 512, codes[i]);
    store_rows<C::strips * scale_bytes>(stage + C::scales_at, scales);
    store_rows<C::strips * zero_bytes>(stage + C::zeros_at, zeros);
#pragma unroll
    for (i32 i = 0; i < Loader<C>::rows_per_thread; ++i)
      if (this->row(i) < C::tile_m)
        ptx::store_shared(stage + C::activations_at + C::activation_at(this->row(i), this->chunk()), activations[i]);
  }

 private:
  // Scales or zero points of the groups of a stage: `run` bytes of each strip, `row` of each group.
  template <i32 run, i32 held, i32 row>
  __device__ __forceinline__ void load_rows(u32x4* into, const void* from) const {
    if constexpr (held > 0) {
      const GemmParams& p = this->p;
      const i32 group = C::channel_scales ? 0 : this->next.stage * C::tile_k / C::group_size;
      const i32 there = min(run, (p.groups - group) * row);
#pragma unroll
      for (i32 i = 0; i < held; ++i) {
        const i32 at = (i * C::threads + threadIdx.x) * 16, strip = at / run;
        const char* const of = static_cast<const char*>(from) + (static_cast<u64>(this->strip + strip) * p.groups + group) * row;
        into[i] = strip < this->strips && at % run < there ? *reinterpret_cast<const u32x4*>(of + at % run) : u32x4{};
      }
    }
  }

  template <i32 bytes, i32 held>
  static __device__ __forceinline__ void store_rows(u32 to, const u32x4 (&from)[held]) {
#pragma unroll
    for (i32 i = 0; i < held; ++i) {
      const i32 at = (i * C::threads + threadIdx.x) * 16;
      if (at < bytes) ptx::store_shared(to + at, from[i]);
    }
  }
};

template <class C, bool asynchronous = ptx::kAsyncCopies>
struct LoaderOf {
  using Type = Loader<C>;
};
template <class C>
struct LoaderOf<C, false> {
  using Type = RegisterLoader<C>;
};
template <class C>
using StageLoader = typename LoaderOf<C>::Type;

}  // namespace billhook
