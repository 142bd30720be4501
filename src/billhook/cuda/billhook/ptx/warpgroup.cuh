// Warpgroups and clusters. SM90a (setmaxnreg), SM90.
// Source: PTX ISA 9.0, "setmaxnreg", "barrier.cluster", "bar".
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook::ptx {

#if __CUDA_ARCH_FEAT_SM90_ALL
// Registers of each thread from here on; `give_up` by one warpgroup feeds `take` by the others of its CTA.
template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ __forceinline__ void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
#endif

// A value that is the same in all lanes, so that the compiler knows it is.
__device__ __forceinline__ i32 uniform(i32 value) { return __shfl_sync(0xffffffffu, value, 0); }

// Waits for the `threads` that share barrier `id` (1 to 15; 0 is __syncthreads').
template <int threads>
__device__ __forceinline__ void sync_some(i32 id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

#if __CUDA_ARCH__ >= 900
// Waits for all threads of all CTAs of the cluster.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
#endif

}  // namespace billhook::ptx
