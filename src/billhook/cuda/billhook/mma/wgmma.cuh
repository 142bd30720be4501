// wgmma: one warpgroup (4 warps) computes D[64 x N] += A[64 x 16] B[16 x N] (32 of 8-bit elements), asynchronously. A comes
// from registers: warp w holds rows 16 w .. 16 w + 15 as one fragment of mma.m16n8k16 (m16n8k32). B lies in shared memory.
// SM90a alone.
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

#define BILLHOOK_D(c, i) c(d[i].v[0]), c(d[i].v[1]), c(d[i].v[2]), c(d[i].v[3])
#define BILLHOOK_D4(c, i) BILLHOOK_D(c, i), BILLHOOK_D(c, i + 1), BILLHOOK_D(c, i + 2), BILLHOOK_D(c, i + 3)
#define BILLHOOK_D8(c, i) BILLHOOK_D4(c, i), BILLHOOK_D4(c, i + 4)

// Registers of D by sixteens, and by eights (H).
#define BILLHOOK_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define BILLHOOK_R1 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define BILLHOOK_R2 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define BILLHOOK_R3 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define BILLHOOK_R4 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define BILLHOOK_R5 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define BILLHOOK_R6 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define BILLHOOK_R7 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define BILLHOOK_H1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define BILLHOOK_H2 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define BILLHOOK_H3 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define BILLHOOK_H4 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define BILLHOOK_H5 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define BILLHOOK_H6 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define BILLHOOK_H7 ", %112, %113, %114, %115, %116, %117, %118, %119"

#define BILLHOOK_WGMMA(T, SUM, KIND, MORE, COLUMNS, N, D, A, B, ADD, ...)                                                 \
  template <>                                                                                                  \
  struct Wgmma<T, COLUMNS> {                                                                                   \
    static __device__ __forceinline__ void run(SUM* d, const Fragment& a, u64 b, bool add) {           \
      asm volatile("{ .reg .pred add; setp.ne.s32 add, " ADD ", 0;\n"                                          \
                   "wgmma.mma_async.sync.aligned.m64n" N KIND " {" D "}, {" A "}, "        \
                   B ", add" MORE "; }"                                                                       \
                   : __VA_ARGS__                                                                               \
                   : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "l"(b), "r"(static_cast<i32>(add))); \
    }                                                                                                          \
  };

// The widths that tiles have. Operands after those of D: four of A, B's descriptor, `add`.
#define BILLHOOK_WGMMAS(T, SUM, C, KIND, MORE) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 2, "16", "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9, %10, %11", "%12", "%13", \
                 BILLHOOK_D(C, 0), BILLHOOK_D(C, 1)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 4, "32", BILLHOOK_R0, "%16, %17, %18, %19", "%20", "%21", \
                 BILLHOOK_D4(C, 0)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 6, "48", BILLHOOK_R0 BILLHOOK_H1, "%24, %25, %26, %27", "%28", "%29", \
                 BILLHOOK_D4(C, 0), BILLHOOK_D(C, 4), BILLHOOK_D(C, 5)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 8, "64", BILLHOOK_R0 BILLHOOK_R1, "%32, %33, %34, %35", "%36", "%37", \
                 BILLHOOK_D8(C, 0)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 10, "80", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_H2, "%40, %41, %42, %43", "%44", "%45", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D(C, 8), BILLHOOK_D(C, 9)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 12, "96", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2, "%48, %49, %50, %51", "%52", "%53", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D4(C, 8)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 14, "112", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_H3, "%56, %57, %58, %59", "%60", "%61", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D4(C, 8), BILLHOOK_D(C, 12), BILLHOOK_D(C, 13)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 16, "128", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3, "%64, %65, %66, %67", "%68", "%69", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 18, "144", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_H4, "%72, %73, %74, %75", "%76", "%77", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D(C, 16), BILLHOOK_D(C, 17)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 20, "160", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4, "%80, %81, %82, %83", "%84", "%85", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D4(C, 16)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 22, "176", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_H5, "%88, %89, %90, %91", "%92", "%93", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D4(C, 16), BILLHOOK_D(C, 20), BILLHOOK_D(C, 21)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 24, "192", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_R5, "%96, %97, %98, %99", "%100", "%101", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D8(C, 16)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 26, "208", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_R5 BILLHOOK_H6, "%104, %105, %106, %107", "%108", "%109", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D8(C, 16), BILLHOOK_D(C, 24), BILLHOOK_D(C, 25)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 28, "224", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_R5 BILLHOOK_R6, "%112, %113, %114, %115", "%116", "%117", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D8(C, 16), BILLHOOK_D4(C, 24)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 30, "240", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_R5 BILLHOOK_R6 BILLHOOK_H7, "%120, %121, %122, %123", "%124", "%125", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D8(C, 16), BILLHOOK_D4(C, 24), BILLHOOK_D(C, 28), BILLHOOK_D(C, 29)) \
  BILLHOOK_WGMMA(T, SUM, KIND, MORE, 32, "256", BILLHOOK_R0 BILLHOOK_R1 BILLHOOK_R2 BILLHOOK_R3 BILLHOOK_R4 BILLHOOK_R5 BILLHOOK_R6 BILLHOOK_R7, "%128, %129, %130, %131", "%132", "%133", \
                 BILLHOOK_D8(C, 0), BILLHOOK_D8(C, 8), BILLHOOK_D8(C, 16), BILLHOOK_D8(C, 24))
// After `add`: neither A nor B is negated (1, 1), B is not transposed (0).
BILLHOOK_WGMMAS(f16, Accumulator, "+f", "k16.f32.f16.f16", ", 1, 1, 0")
BILLHOOK_WGMMAS(bf16, Accumulator, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0")
BILLHOOK_WGMMAS(e4m3fn, Accumulator, "+f", "k32.f32.e4m3.e4m3", ", 1, 1")
BILLHOOK_WGMMAS(s8, IntegerAccumulator, "+r", "k32.s32.s8.s8", "")

#undef BILLHOOK_WGMMAS
#undef BILLHOOK_WGMMA
#undef BILLHOOK_R0
#undef BILLHOOK_R1
#undef BILLHOOK_H1
#undef BILLHOOK_R2
#undef BILLHOOK_H2
#undef BILLHOOK_R3
#undef BILLHOOK_H3
#undef BILLHOOK_R4
#undef BILLHOOK_H4
#undef BILLHOOK_R5
#undef BILLHOOK_H5
#undef BILLHOOK_R6
#undef BILLHOOK_H6
#undef BILLHOOK_R7
#undef BILLHOOK_H7
#undef BILLHOOK_D8
#undef BILLHOOK_D4
#undef BILLHOOK_D
#endif

}  // namespace billhook
