// Types of elements, and the instructions that compute with them.
#pragma once
#include "machine.hpp"

namespace cpu {

struct f32 { using Type = float; };
struct s32 { using Type = i32; };

inline float as_float(u32 bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline u32 as_bits(float v) {
  u32 bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// To nearest even, with `precision` bits, in multiples of 2^smallest.
inline double round_to(double v, int precision, int smallest) {
  int exponent;
  std::frexp(v, &exponent);
  if (!std::isfinite(v) || v == 0) return v;
  const int unit = std::max(exponent - precision, smallest);
  return std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
}

struct bf16 {
  static constexpr int width = 16;
  static double value(u32 bits) { return as_float(bits << 16); }
  static u32 bits(double v) { return as_bits(static_cast<float>(round_to(v, 8, -133))) >> 16; }
};

struct f16 {
  static constexpr int width = 16;
  static double value(u32 bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double finite = std::ldexp(exponent ? 1024 + mantissa : mantissa, std::max(exponent, 1) - 25);
    const double v = exponent < 31 ? finite : mantissa ? NAN : INFINITY;
    return bits >> 15 ? -v : v;
  }
  static u32 bits(double v) {
    const u32 sign = std::signbit(v) ? 0x8000 : 0;
    const double size = std::fabs(round_to(v, 11, -24));
    if (std::isnan(v)) return 0x7fff;
    if (size >= 65536) return sign | 0x7c00;
    if (size < std::ldexp(1, -14)) return sign | static_cast<u32>(std::ldexp(size, 24));
    int exponent;
    const double fraction = std::frexp(size, &exponent);
    return sign | (static_cast<u32>(std::ldexp(fraction, 11)) + (exponent + 13 << 10));
  }
};

struct e4m3 {
  static constexpr int width = 8;
  static double value(u32 bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    if ((bits & 127) == 127) return NAN;
    const double v = std::ldexp(exponent ? 8 + mantissa : mantissa, std::max(exponent, 1) - 10);
    return bits >> 7 ? -v : v;
  }
  // Saturated at 448.
  static u32 bits(double v) {
    const u32 sign = std::signbit(v) ? 0x80 : 0;
    const double size = std::min(std::fabs(round_to(v, 4, -9)), 448.0);
    if (std::isnan(v)) return 0x7f;
    if (size < std::ldexp(1, -6)) return sign | static_cast<u32>(std::ldexp(size, 9));
    int exponent;
    const double fraction = std::frexp(size, &exponent);
    return sign | (static_cast<u32>(std::ldexp(fraction, 4)) + (exponent + 5 << 3));
  }
};

struct s8 {
  static constexpr int width = 8;
  static double value(u32 bits) { return static_cast<signed char>(bits); }
};

// a * b + c, rounded once; the product is exact in double, and their sum must be.
template <class T>
u32 fma_one(u32 a, u32 b, u32 c) {
  const double product = T::value(a) * T::value(b), addend = T::value(c), sum = product + addend;
  if (std::isfinite(sum) && (sum - product) - addend != 0) fail("the model's double does not hold a sum exactly");
  return T::bits(sum);
}

template <class T>
u32 fma_pair(u32 a, u32 b, u32 c) {
  return fma_one<T>(a & 0xffff, b & 0xffff, c & 0xffff) | fma_one<T>(a >> 16, b >> 16, c >> 16) << 16;
}

inline void fma_rn_f16x2(u32& d, u32 a, u32 b, u32 c) { d = fma_pair<f16>(a, b, c); }
inline void fma_rn_bf16x2(u32& d, u32 a, u32 b, u32 c) { d = fma_pair<bf16>(a, b, c); }
inline void cvt_rn_f16x2_f32(u32& d, float high, float low) { d = f16::bits(low) | f16::bits(high) << 16; }
inline void cvt_rn_bf16x2_f32(u32& d, float high, float low) { d = bf16::bits(low) | bf16::bits(high) << 16; }
inline void cvt_rn_bf16_f32(u16& d, float a) { d = bf16::bits(a); }
inline void cvt_rn_f16_f32(u16& d, float a) { d = f16::bits(a); }
inline void cvt_f32_f16(float& d, u16 a) { d = static_cast<float>(f16::value(a)); }
inline void cvt_rn_f16x2_e4m3x2(u32& d, u16 a) { d = f16::bits(e4m3::value(a & 0xff)) | f16::bits(e4m3::value(a >> 8)) << 16; }
inline void cvt_rn_satfinite_e4m3x2_f16x2(u16& d, u32 a) {
  d = e4m3::bits(f16::value(a & 0xffff)) | e4m3::bits(f16::value(a >> 16)) << 8;
}
inline void cvt_u16_u32(u16& d, u32 a) { d = a; }
inline void max_bf16x2(u32& d, u32 a, u32 b) {
  const auto one = [](u32 a, u32 b) { return bf16::value(a) > bf16::value(b) ? a : b; };
  d = one(a & 0xffff, b & 0xffff) | one(a >> 16, b >> 16) << 16;
}
inline void mov_b32(std::array<u16*, 2> halves, u32 a) { *halves[0] = a, *halves[1] = a >> 16; }
inline void mov_b32(u32& d, std::array<u16*, 2> halves) { d = *halves[0] | u32(*halves[1]) << 16; }
inline void and_b32(u32& d, u32 a, u32 b) { d = a & b; }
inline void setp_ne_s32(bool& d, i32 a, i32 b) { d = a != b; }
inline void setp_ne_u32(bool& d, u32 a, u32 b) { d = a != b; }
inline void prmt_b32(u32& d, u32 a, u32 b, u32 selectors) {
  const u64 bytes = a | u64(b) << 32;
  d = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 byte = bytes >> 8 * (selectors >> 4 * i & 7) & 0xff;
    d |= (selectors >> 4 * i & 8 ? byte >> 7 ? 0xff : 0 : byte) << 8 * i;
  }
}
inline void lop3_b32(u32& d, u32 a, u32 b, u32 c, int table) {
  d = 0;
  for (int row = 0; row < 8; ++row)
    if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
}

}  // namespace cpu
