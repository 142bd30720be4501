// wgmma: one warpgroup (4 warps) computes D[64 x N] += A[64 x 16] B[16 x N], asynchronously. A comes from registers: warp w
// holds rows 16 w .. 16 w + 15 as one mma.m16n8k16 fragment. B lies in shared memory. SM90a alone.
// Source: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions", "Matrix-Descriptor Format".
#pragma once
#include "billhook/mma/mma_sync.cuh"

namespace billhook {

#if __CUDA_ARCH_FEAT_SM90_ALL
// Registers written before are read by what is issued after.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `pending` of the youngest groups are in flight.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// B with k contiguous: rows of 64 elements (128 bytes) whose eight 16-byte chunks are permuted by chunk ^ (row % 8) (the
// 128-byte swizzle), eight rows after eight rows 1024 bytes on. Step 16 elements along k by adding 32 bytes, 8 rows by 1024.
__device__ __forceinline__ u64 wgmma_descriptor(u32 address) {
  constexpr u64 kSwizzle128 = 1ull << 62, kEightRows = static_cast<u64>(1024 >> 4) << 32, kUnused = 1ull << 16;
  return kSwizzle128 | kEightRows | kUnused | ((address & 0x3ffff) >> 4);
}

// D of `columns` x 8 tokens; without `add` what D held before does not count.
template <class T, int columns>
struct Wgmma;

#define BILLHOOK_D(i) "+f"(d[i].v[0]), "+f"(d[i].v[1]), "+f"(d[i].v[2]), "+f"(d[i].v[3])
#define BILLHOOK_WGMMA(T, NAME, COLUMNS, N, D, A, B, ADD, ...)                                                           \
  template <>                                                                                                          \
  struct Wgmma<T, COLUMNS> {                                                                                           \
    static __device__ __forceinline__ void run(Accumulator* d, const Fragment& a, u64 b, bool add) {                   \
      asm volatile("{ .reg .pred accumulate; setp.ne.s32 accumulate, %" ADD ", 0;\n"                                          \
                   "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." NAME "." NAME " {" D "}, {" A "}, " B              \
                   ", accumulate, 1, 1, 0; }"                                                                          \
                   : __VA_ARGS__                                                                                       \
                   : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(static_cast<i32>(add)));         \
    }                                                                                                                  \
  };
#define BILLHOOK_D4 "%0, %1, %2, %3"
#define BILLHOOK_D8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define BILLHOOK_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BILLHOOK_D32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BILLHOOK_D64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define BILLHOOK_WGMMA_1(T, NAME) BILLHOOK_WGMMA(T, NAME, 1, "8", BILLHOOK_D4, "%4, %5, %6, %7", "%8", "9", \
    BILLHOOK_D(0))
#define BILLHOOK_WGMMA_2(T, NAME) BILLHOOK_WGMMA(T, NAME, 2, "16", BILLHOOK_D8, "%8, %9, %10, %11", "%12", "13", \
    BILLHOOK_D(0), BILLHOOK_D(1))
#define BILLHOOK_WGMMA_4(T, NAME) BILLHOOK_WGMMA(T, NAME, 4, "32", BILLHOOK_D16, "%16, %17, %18, %19", "%20", "21", \
    BILLHOOK_D(0), BILLHOOK_D(1), BILLHOOK_D(2), BILLHOOK_D(3))
#define BILLHOOK_WGMMA_8(T, NAME) BILLHOOK_WGMMA(T, NAME, 8, "64", BILLHOOK_D32, "%32, %33, %34, %35", "%36", "37", \
    BILLHOOK_D(0), BILLHOOK_D(1), BILLHOOK_D(2), BILLHOOK_D(3), BILLHOOK_D(4), BILLHOOK_D(5), \
    BILLHOOK_D(6), BILLHOOK_D(7))
#define BILLHOOK_WGMMA_16(T, NAME) BILLHOOK_WGMMA(T, NAME, 16, "128", BILLHOOK_D64, "%64, %65, %66, %67", "%68", "69", \
    BILLHOOK_D(0), BILLHOOK_D(1), BILLHOOK_D(2), BILLHOOK_D(3), BILLHOOK_D(4), BILLHOOK_D(5), \
    BILLHOOK_D(6), BILLHOOK_D(7), BILLHOOK_D(8), BILLHOOK_D(9), BILLHOOK_D(10), BILLHOOK_D(11), \
    BILLHOOK_D(12), BILLHOOK_D(13), BILLHOOK_D(14), BILLHOOK_D(15))
BILLHOOK_WGMMA_1(f16, "f16")
BILLHOOK_WGMMA_2(f16, "f16")
BILLHOOK_WGMMA_4(f16, "f16")
BILLHOOK_WGMMA_8(f16, "f16")
BILLHOOK_WGMMA_16(f16, "f16")
BILLHOOK_WGMMA_1(bf16, "bf16")
BILLHOOK_WGMMA_2(bf16, "bf16")
BILLHOOK_WGMMA_4(bf16, "bf16")
BILLHOOK_WGMMA_8(bf16, "bf16")
BILLHOOK_WGMMA_16(bf16, "bf16")

#undef BILLHOOK_WGMMA_1
#undef BILLHOOK_D4
#undef BILLHOOK_WGMMA_2
#undef BILLHOOK_D8
#undef BILLHOOK_WGMMA_4
#undef BILLHOOK_D16
#undef BILLHOOK_WGMMA_8
#undef BILLHOOK_D32
#undef BILLHOOK_WGMMA_16
#undef BILLHOOK_D64
#undef BILLHOOK_WGMMA
#undef BILLHOOK_D
#endif

}  // namespace billhook
