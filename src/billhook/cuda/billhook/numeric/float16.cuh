// The two 16-bit floating-point types as tags, with the few conversions the kernels need. fp16: SM75+; bf16: SM80+.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

struct f16 {
  // Two floats to one register, rounded to nearest even; `low` in bits 0..15.
  static __device__ __forceinline__ u32 pack(float low, float high) {
    u32 v;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
#else
    asm("{ .reg .b16 l, h; cvt.rn.f16.f32 l, %2; cvt.rn.f16.f32 h, %1; mov.b32 %0, {l, h}; }" : "=r"(v) : "f"(high), "f"(low));
#endif
    return v;
  }
  static __device__ __forceinline__ float low(u32 pair) {
    float v;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(v) : "r"(pair));
    return v;
  }
  static __device__ __forceinline__ float high(u32 pair) {
    float v;
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(v) : "r"(pair));
    return v;
  }
  // Elementwise a * b + c, rounded once.
  static __device__ __forceinline__ u32 fma(u32 a, u32 b, u32 c) {
    u32 v;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
  }
};

struct bf16 {
  static __device__ __forceinline__ u32 pack(float low, float high) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
  }
  // A bf16 is the upper half of the float of equal value.
  static __device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
  static __device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
  static __device__ __forceinline__ u32 fma(u32 a, u32 b, u32 c) {
    u32 v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
    return v;
  }
  static __device__ __forceinline__ u32 max(u32 a, u32 b) {
    u32 v;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
  }
};

// Elementwise a * b, rounded once: -0 is the neutral element of addition.
template <class T>
__device__ __forceinline__ u32 multiply(u32 a, u32 b) {
  return T::fma(a, b, 0x80008000u);
}

// One half of a pair in both halves.
__device__ __forceinline__ u32 broadcast_low(u32 pair) { return __byte_perm(pair, 0, 0x1010); }
__device__ __forceinline__ u32 broadcast_high(u32 pair) { return __byte_perm(pair, 0, 0x3232); }

}  // namespace billhook
