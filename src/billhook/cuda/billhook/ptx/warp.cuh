// Sums, maxima and ranks within one warp. SM75+.
// Source: PTX ISA 9.0, "redux.sync"; CUDA Programming Guide, "Warp Vote Functions".
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook::ptx {

// The sum of every lane's value, in every lane.
__device__ __forceinline__ i32 warp_sum(i32 value) {
#if __CUDA_ARCH__ >= 800
  i32 sum;
  asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(value));
  return sum;
#else
#pragma unroll
  for (i32 other = 16; other > 0; other /= 2) value += __shfl_xor_sync(0xffffffffu, value, other);
  return value;
#endif
}

// The largest of every lane's value, in every lane.
__device__ __forceinline__ u32 warp_max(u32 value) {
#if __CUDA_ARCH__ >= 800
  u32 largest;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(largest) : "r"(value));
  return largest;
#else
#pragma unroll
  for (i32 other = 16; other > 0; other /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, other));
  return value;
#endif
}

// How many lanes below this one say yes.
__device__ __forceinline__ i32 lanes_below(bool yes) {
  u32 below;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
  return __popc(__ballot_sync(0xffffffffu, yes) & below);
}

}  // namespace billhook::ptx
