// Floats to 8-bit codes, rounded to nearest, ties to even, and quotients that round as the exact ones do. SM75+.
//
// x / s is computed as x times the reciprocal of s. Two roundings put it at most 2^-23 of itself off, which is less than two
// units in its last place, or two of the smaller units below a power of two. That matters where a tie lies between it and the
// exact quotient. Ties have at most eight significant bits (e4m3 five; s8 eight: 127.5), so that the lower 16 bits of a float
// are 0: if they are not within two units of that, no tie is near. Else the number of eight bits that is near, times s, is
// compared with x, exactly.
#pragma once
#include "billhook/numeric/elements.cuh"

namespace billhook {

// What divides the numbers of one token. Numbers and scale are multiplied by a power of two where the scale is so far from 1
// that its reciprocal or a remainder might be no normal number. What becomes infinite or zero by that would saturate, or round
// to zero, anyhow.
struct Divisor {
  float factor;
  float scale;       // times factor
  float reciprocal;  // of that
  u32 mask;          // of codes: none is left where the scale is 0
};

__device__ __forceinline__ Divisor divide_by(float scale) {
  constexpr float kFar = 0x1p64f;
  const float size = fabsf(scale), factor = size < 1 / kFar ? kFar : size > kFar ? 1 / kFar : 1.f;
  const bool none = scale == 0;
  return {factor, scale * factor, none ? 0.f : 1 / (scale * factor), none ? 0u : 0xffffffffu};
}

constexpr u32 kUnitsOff = 2;
constexpr u32 kLowerBits = 0xffff;

// Whether a number of eight significant bits is as near to a quotient as the exact one may be.
__device__ __forceinline__ bool near_tie(float quotient) {
  return (__float_as_uint(quotient) + kUnitsOff & kLowerBits) <= 2 * kUnitsOff;
}

// A quotient that rounds to the code of the exact x / scale: the number of eight bits that is near, or the float next to it on
// the side of x. The remainder is exact: of the 32 bits of a product of 8 and 24, at most 12 are left.
__device__ __forceinline__ float settle(float quotient, float x, float scale) {
  const u32 near = __float_as_uint(quotient) + kUnitsOff & ~kLowerBits;
  const float rest = fmaf(-__uint_as_float(near), scale, x);
  const bool beyond = ((__float_as_uint(rest) ^ __float_as_uint(x)) >> 31) == 0;
  const u32 settled = near + (rest == 0 ? 0 : beyond ? 1 : -1);
  return near_tie(quotient) && rest == rest ? __uint_as_float(settled) : quotient;  // NaN, infinite: as they are
}

// Numbers as quotients that are safe to round.
__device__ __forceinline__ void divide(float (&v)[4], const Divisor& by) {
  float quotient[4];
  bool near = false;
#pragma unroll
  for (i32 i = 0; i < 4; ++i) {
    v[i] *= by.factor;
    quotient[i] = v[i] * by.reciprocal;
    near |= near_tie(quotient[i]);
  }
  if (near) {  // rare, unless the scale is a power of two
#pragma unroll
    for (i32 i = 0; i < 4; ++i) quotient[i] = settle(quotient[i], v[i], by.scale);
  }
#pragma unroll
  for (i32 i = 0; i < 4; ++i) v[i] = quotient[i];
}

// Numbers as codes, one a byte, the first lowest; what is out of range saturates.
template <class Code>
struct Encode;

template <>
struct Encode<s8> {
  static constexpr float kLargest = 127;
  // NaN becomes 0.
  static __device__ __forceinline__ u32 run(const float (&v)[4]) {
    i32 rounded[4];
    u32 codes;
#pragma unroll
    for (i32 i = 0; i < 4; ++i) asm("cvt.rni.s32.f32 %0, %1;" : "=r"(rounded[i]) : "f"(v[i]));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(codes) : "r"(rounded[3]), "r"(rounded[2]), "r"(0));
    asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(codes) : "r"(rounded[1]), "r"(rounded[0]), "r"(codes));
    return codes;
  }
};

template <>
struct Encode<e4m3fn> {
  static constexpr float kLargest = 448;
#if __CUDA_ARCH__ >= 890
  static __device__ __forceinline__ u32 pair(float low, float high) {
    u16 codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
  }
#else
  // Normal numbers: rounded to three bits of mantissa in place, the exponent's bias changed from 127 to 7. Smaller ones are
  // multiples of 2^-9, as the floats from 2^14 on are.
  static __device__ __forceinline__ u32 code(float v) {
    constexpr float kSmallestNormal = 0x1p-6f, kEven = 0x1p14f;
    if (v != v) return 0x7f;
    const float size = fminf(fabsf(v), kLargest);
    const u32 bits = __float_as_uint(size), sign = __float_as_uint(v) >> 24 & 0x80;
    if (size < kSmallestNormal) return __float_as_uint(size + kEven) - __float_as_uint(kEven) | sign;
    return (bits + 0x7ffff + (bits >> 20 & 1) >> 20) - (120 << 3) | sign;
  }
  static __device__ __forceinline__ u32 pair(float low, float high) { return code(low) | code(high) << 8; }
#endif
  static __device__ __forceinline__ u32 run(const float (&v)[4]) { return pair(v[0], v[1]) | pair(v[2], v[3]) << 16; }
};

}  // namespace billhook
