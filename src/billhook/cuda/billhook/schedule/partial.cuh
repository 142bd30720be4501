// Partial sums of CTAs that share an output tile are their own flags: a slot of the workspace holds words of all ones (a NaN no
// sum has) until its CTA writes it, and again once it is read. So handing over costs one write and one read, with no fence or
// counter between.
#pragma once
#include "billhook/ptx/memory.cuh"

namespace billhook {

constexpr u32 kEmpty = 0xffffffffu;

// A sum as it is handed over.
__device__ __forceinline__ u32 partial_word(float v) {
  const u32 bits = __float_as_uint(v);
  return bits == kEmpty ? 0x7fffffffu : bits;  // another NaN
}

// Whether some of four words are yet to come.
__device__ __forceinline__ bool is_partly_empty(const u32x4& u) {
  return u.x == kEmpty || u.y == kEmpty || u.z == kEmpty || u.w == kEmpty;
}

// Where a worker of the Machete family, the CTA `rank` of a cluster, leaves its part of a tile: for each accumulator of a thread a row
// of one of each thread.
template <class C>
__device__ __forceinline__ u32x4* part_of(u32* partials, i32 worker, i32 rank) {
  const i64 cta = static_cast<i64>(worker) * C::cluster + rank;
  return reinterpret_cast<u32x4*>(partials) + cta * (C::quads * C::team * 128);
}

}  // namespace billhook
