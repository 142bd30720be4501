// Asynchronous copies from global to shared memory: cp.async (SM80+), and 1-D bulk copies and 2-D tensor copies (TMA)
// that complete on an mbarrier (SM90+). Source: PTX ISA 9.0, "Asynchronous copy" and "mbarrier".
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook::ptx {

// Whether there is cp.async; without it, its groups are always empty.
#if __CUDA_ARCH__ == 750
constexpr bool kAsyncCopies = false;
#else
constexpr bool kAsyncCopies = true;
#endif

// Copies `bytes` (0 or 16) and fills the rest of 16 bytes with zeros; with 0, `from` is not read.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  if constexpr (kAsyncCopies) asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `pending` of this thread's youngest groups are in flight.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  if constexpr (kAsyncCopies) asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Arrives if `yes`. No branch: it may stand between wgmma in flight.
__device__ __forceinline__ void mbarrier_arrive(u32 barrier, bool yes) {
  asm volatile(
      "{\n"
      ".reg .pred yes;\n"
      "setp.ne.u32 yes, %1, 0;\n"
      "@yes mbarrier.arrive.shared.b64 _, [%0];\n"
      "}\n" ::"r"(barrier),
      "r"(static_cast<u32>(yes))
      : "memory");
}

// Arrives at the barrier of the cluster's CTA `rank` that lies where `barrier` lies in this one, if `yes`. No branch: it
// may stand between wgmma in flight. What was read before is ordered, ordinary writes are not (that would take a fence).
__device__ __forceinline__ void mbarrier_arrive_cluster(u32 barrier, u32 rank, bool yes) {
  asm volatile(
      "{\n"
      ".reg .pred yes;\n"
      ".reg .b32 there;\n"
      "setp.ne.u32 yes, %2, 0;\n"
      "@yes mapa.shared::cluster.u32 there, %0, %1;\n"
      "@yes mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank), "r"(static_cast<u32>(yes))
      : "memory");
}

// How often a warp whose lanes have come together arrives at a barrier. Once is enough, but racecheck takes only the thread that
// arrives to be ordered: for its sake all lanes can (docs/numerics.md).
__device__ constexpr i32 arrivals_of_warp() {
#ifdef BILLHOOK_EVERY_LANE_ARRIVES
  return 32;
#else
  return 1;
#endif
}

// The warp that this `lane` is of arrives, so often, at the barrier of each of the cluster's CTAs, if `yes`.
template <i32 cluster>
__device__ __forceinline__ void mbarrier_arrive_warp(u32 barrier, i32 lane, bool yes) {
  if constexpr (arrivals_of_warp() == 1) {
    mbarrier_arrive_cluster(barrier, lane, yes && lane < cluster);
  } else {
#pragma unroll
    for (i32 rank = 0; rank < cluster; ++rank) mbarrier_arrive_cluster(barrier, rank, yes);
  }
}

// Arrives once this thread's cp.async so far have landed; the barrier counts it among those it expects.
__device__ __forceinline__ void mbarrier_arrive_copied(u32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// Makes initialised barriers visible to the bulk-copy engine.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Makes this thread's ordinary writes to shared memory (cp.async among them) visible to bulk copies and wgmma.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Makes what this thread has seen in global memory visible to its bulk copies.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// `bytes`, both addresses: multiples of 16.
__device__ __forceinline__ void bulk_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box of a 2-D tensor whose first element is at (x, y), x the contiguous axis; what lies outside the tensor is zero.
__device__ __forceinline__ void tensor_copy(u32 to, const void* map, i32 x, i32 y, u32 barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
               "l"(map), "r"(x), "r"(y), "r"(barrier)
               : "memory");
}

// The same to every CTA of the cluster named in `mask`, at the same places; each one's barrier is told of the bytes.
__device__ __forceinline__ void tensor_copy_multicast(u32 to, const void* map, i32 x, i32 y, u32 barrier, u16 mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
      "[%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
      : "memory");
}
#endif

}  // namespace billhook::ptx
