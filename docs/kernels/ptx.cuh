// The instructions of the ladder, one function each, in the order in which its steps first need them. SM90a.
// Source: PTX ISA 9.0. Shared memory is named by 32-bit addresses of the shared window throughout.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;
using bf16 = unsigned short;  // its bits: the upper half of the float of equal value

#define DEVICE __device__ __forceinline__

// --- step 1: memory, and wgmma with both operands in shared memory ------------------------------------------------

// Dynamic shared memory, at a multiple of 1024: the 128-byte swizzle permutes by address bits 7..9 and repeats there.
DEVICE u32 shared_memory() {
  extern __shared__ __align__(1024) char memory[];
  return static_cast<u32>(__cvta_generic_to_shared(memory));
}

DEVICE void store_shared(u32 to, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Rounds to nearest even.
DEVICE bf16 to_bf16(float v) {
  bf16 bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

// wgmma and TMA read and write shared memory through the asynchronous proxy, which does not see a thread's ordinary
// stores before this.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Registers written before (accumulators, row operands) may be read by wgmma issued after.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// All wgmma since the last commit become one group; `wgmma_wait` waits until at most `pending` groups are in flight.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D64 D16(0), D16(16), D16(32), D16(48)
#define WGMMA "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "                                      \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                 \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

// D[64 x 128] = A[64 x 16] B[16 x 128] (+ D if `add`); A and B by descriptors of rows and columns with k contiguous.
// The numbers at the end: A and B are multiplied by 1; neither is transposed.
DEVICE void wgmma(float (&d)[64], u64 a, u64 b, bool add) {
  asm volatile("{ .reg .pred add; setp.ne.u32 add, %66, 0;\n" WGMMA "%64, %65, add, 1, 1, 0, 0; }"
               : D64
               : "l"(a), "l"(b), "r"(static_cast<u32>(add)));
}

// --- step 2: TMA and mbarriers -------------------------------------------------------------------------------------

// What cuTensorMapEncodeTiled writes, and the hardware reads: opaque.
struct alignas(128) TensorMap {
  u64 words[16];
};

// The index of this thread's warp, known to the compiler to be equal for all lanes.
DEVICE int warp_index() { return __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); }

// A barrier's phase ends when `arrivals` have arrived and all bytes expected in it have come.
DEVICE void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the cluster and to TMA.
DEVICE void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

DEVICE void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

DEVICE void mbarrier_arrive_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity; phases count from 0. Before phase 0 ends, "the phase of parity 1" is the
// one before it, which has ended: a wait for parity 1 on a new barrier passes at once.
DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies the tensor map's box whose first element is (x, y), x running fastest, and tells the barrier its bytes. What lies
// outside the tensor becomes zero, and counts.
DEVICE void tma_load(u32 to, const TensorMap& map, int x, int y, u32 barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                   "r"(to), "l"(&map), "r"(x), "r"(y), "r"(barrier)
               : "memory");
}

// --- step 3: the row operand in registers --------------------------------------------------------------------------

// Contiguous bytes; addresses and count are multiples of 16. No tensor map.
DEVICE void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}

DEVICE uint4 load_shared(u32 from) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
  return v;
}

// As above, with A in registers: each warp holds 16 rows, as the row operand of mma.m16n8k16.
DEVICE void wgmma(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
  asm volatile("{ .reg .pred add; setp.ne.u32 add, %69, 0;\n" WGMMA "{%64, %65, %66, %67}, %68, add, 1, 1, 0; }"
               : D64
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<u32>(add)));
}

// --- step 4: dequantization ----------------------------------------------------------------------------------------

DEVICE u32 load_shared_u32(u32 from) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
  return v;
}

// (v & mask) | bits in one instruction: 0xEA = (0xF0 & 0xCC) | 0xAA, the truth table of the three inputs.
template <u32 mask, u32 bits>
DEVICE u32 and_or(u32 v) {
  u32 out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "n"(mask), "n"(bits));
  return out;
}

// a * b + c of two bf16 pairs, each rounded once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
  u32 v;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// --- step 5: registers by role, clusters ---------------------------------------------------------------------------

// All warps of a warpgroup hand registers back to their SM, or wait for them.
template <int registers>
DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
DEVICE void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

DEVICE u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Waits for all threads of the cluster that have not exited. `aligned`: the lanes of a warp come together.
DEVICE void cluster_sync() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// If `yes`, arrives at the barrier that lies at the same place in CTA `rank` of the cluster. A predicate and no branch: between
// wgmma in flight, ptxas takes a branch on the thread for the end of what it can schedule, and serialises them (C7513).
DEVICE void mbarrier_arrive(u32 barrier, u32 rank, bool yes) {
  asm volatile(
      "{ .reg .pred yes; .reg .b32 remote;\n"
      "setp.ne.u32 yes, %2, 0;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "@yes mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(barrier),
      "r"(rank), "r"(static_cast<u32>(yes))
      : "memory");
}

// As `tma_load`, into every CTA of the cluster whose bit is set in `ranks`: at the same place, telling its own barrier.
DEVICE void tma_load_multicast(u32 to, const TensorMap& map, int x, int y, u32 barrier, u32 ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(static_cast<unsigned short>(ranks))
      : "memory");
}

// --- step 6: words that meet those of other CTAs while the kernel runs; each is read or written whole, in no order -----

DEVICE float4 load_relaxed(const float4* from) {
  float4 v;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from)
               : "memory");
  return v;
}

DEVICE void store_relaxed(float4* to, float4 v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}
