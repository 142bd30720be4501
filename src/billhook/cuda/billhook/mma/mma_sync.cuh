// D[16 x 8] += A[16 x 16] B[16 x 8], float32 accumulation. fp16: SM75+; bf16: SM80+.
// Source: PTX ISA 9.0, "mma.m16n8k16 with floating point type". Lane = 4 g + t holds of D rows g (0, 1) and g + 8 (2, 3),
// columns 2t and 2t + 1.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook {

struct Accumulator {
  float v[4];
};

struct IntegerAccumulator {
  i32 v[4];
};

// The sums of products of T.
template <class T>
struct SumOf {
  using Type = Accumulator;
};
template <>
struct SumOf<s8> {
  using Type = IntegerAccumulator;
};

template <class T>
__device__ __forceinline__ void mma(Accumulator& d, const Fragment& a, u32 b0, u32 b1, const Accumulator& c);

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void mma<f16>(Accumulator& d, const Fragment& a, u32 b0, u32 b1, const Accumulator& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.v[0]), "=f"(d.v[1]), "=f"(d.v[2]), "=f"(d.v[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1), "f"(c.v[0]), "f"(c.v[1]), "f"(c.v[2]),
        "f"(c.v[3]));
}

#else
// D[16 x 8] += A[16 x 8] B[8 x 8], where SM75 has nothing larger.
__device__ __forceinline__ void mma_m16n8k8(Accumulator& d, u32 a0, u32 a1, u32 b, const Accumulator& c) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d.v[0]), "=f"(d.v[1]), "=f"(d.v[2]), "=f"(d.v[3])
      : "r"(a0), "r"(a1), "r"(b), "f"(c.v[0]), "f"(c.v[1]), "f"(c.v[2]), "f"(c.v[3]));
}

template <>
__device__ __forceinline__ void mma<f16>(Accumulator& d, const Fragment& a, u32 b0, u32 b1, const Accumulator& c) {
  mma_m16n8k8(d, a.r[0], a.r[1], b0, c);
  mma_m16n8k8(d, a.r[2], a.r[3], b1, d);
}
#endif

template <>
__device__ __forceinline__ void mma<bf16>(Accumulator& d, const Fragment& a, u32 b0, u32 b1, const Accumulator& c) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d.v[0]), "=f"(d.v[1]), "=f"(d.v[2]), "=f"(d.v[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1), "f"(c.v[0]), "f"(c.v[1]), "f"(c.v[2]),
        "f"(c.v[3]));
}

}  // namespace billhook
