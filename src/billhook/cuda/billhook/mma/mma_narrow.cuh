// D[16 x 8] += A[16 x 32] B[32 x 8] of 8-bit elements: s8 with 32-bit sums, SM75+; e4m3fn with float32 ones, SM89+.
// Source: PTX ISA 9.0, "mma.m16n8k32", "mma.m8n8k16 with integer type". D lies as in mma_sync.cuh; of B, lane 4 g + t holds
// column g, rows 4 t .. 4 t + 3 and the same 16 on.
#pragma once
#include "billhook/mma/mma_sync.cuh"

namespace billhook {

// Whether the compiler makes fp16 of both operands, in twice the registers: mma.sync multiplies e4m3 on SM89 and SM120 alone.
template <class T>
constexpr bool widened = false;
#if __CUDA_ARCH__ != 890 && __CUDA_ARCH__ < 1200
template <>
constexpr bool widened<e4m3fn> = true;
#endif

template <>
__device__ __forceinline__ void mma<e4m3fn>(Accumulator& d, const Fragment& a, u32 b0, u32 b1, const Accumulator& c) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.v[0]), "=f"(d.v[1]), "=f"(d.v[2]), "=f"(d.v[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1), "f"(c.v[0]), "f"(c.v[1]), "f"(c.v[2]),
        "f"(c.v[3]));
}

template <class T>
__device__ __forceinline__ void mma(IntegerAccumulator& d, const Fragment& a, u32 b0, u32 b1, const IntegerAccumulator& c);

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void mma<s8>(IntegerAccumulator& d, const Fragment& a, u32 b0, u32 b1, const IntegerAccumulator& c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1), "r"(c.v[0]), "r"(c.v[1]), "r"(c.v[2]),
        "r"(c.v[3]));
}
#else
// D[8 x 8] += A[8 x 16] B[16 x 8], where SM75 has nothing larger.
__device__ __forceinline__ void mma_m8n8k16(i32* d, u32 a, u32 b, const i32* c) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%4,%5};"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a), "r"(b), "r"(c[0]), "r"(c[1]));
}

template <>
__device__ __forceinline__ void mma<s8>(IntegerAccumulator& d, const Fragment& a, u32 b0, u32 b1, const IntegerAccumulator& c) {
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {  // rows g, rows g + 8
    mma_m8n8k16(d.v + 2 * half, a.r[half], b0, c.v + 2 * half);
    mma_m8n8k16(d.v + 2 * half, a.r[2 + half], b1, d.v + 2 * half);
  }
}
#endif

}  // namespace billhook
