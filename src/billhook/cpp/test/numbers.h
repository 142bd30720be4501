// Element types on the host: their values, and random ones.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>

#include "billhook.h"

namespace test {

// A small floating-point format, given by its fields.
struct Float {
  int exponent_bits, mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
};

inline Float float_of(BillhookType type) {
  switch (type) {
    case BILLHOOK_F16: return {5, 10};
    case BILLHOOK_BF16: return {8, 7};
    case BILLHOOK_E4M3FN: return {4, 3};
    case BILLHOOK_E2M1F: return {2, 1};
    default: throw std::invalid_argument("not a floating-point type");
  }
}

inline int bits_of(BillhookType type) {
  switch (type) {
    case BILLHOOK_F32: case BILLHOOK_S32: return 32;
    case BILLHOOK_F16: case BILLHOOK_BF16: return 16;
    case BILLHOOK_U4: case BILLHOOK_U4B8: case BILLHOOK_E2M1F: return 4;
    default: return 8;
  }
}

inline const char* name_of(BillhookType type) {
  static const char* const names[] = {"?",    "f16", "bf16",   "f32",    "s8",    "s32",    "u4",
                                      "u4b8", "u8",  "u8b128", "e4m3fn", "e2m1f", "e8m0fnu"};
  return names[type];
}

// What is subtracted from a code; 0 for floating-point weights.
inline int bias_of(BillhookType type) { return type == BILLHOOK_U4B8 ? 8 : type == BILLHOOK_U8B128 ? 128 : 0; }
inline bool has_zeros(BillhookType type) { return type == BILLHOOK_U4 || type == BILLHOOK_U8; }
inline bool is_eight_bit_activation(BillhookType type) { return type == BILLHOOK_S8 || type == BILLHOOK_E4M3FN; }
inline bool is_integer(BillhookType type) { return has_zeros(type) || bias_of(type) > 0; }

// Whether weights are codes times scales, rounded to e4m3: W4A8.
inline bool folds(BillhookType codes, BillhookType scales) { return codes == BILLHOOK_U4B8 && scales == BILLHOOK_E4M3FN; }

inline double value_of(BillhookType type, uint32_t bits) {
  if (is_integer(type)) return static_cast<double>(bits) - bias_of(type);
  if (type == BILLHOOK_S8) return static_cast<int8_t>(bits);
  if (type == BILLHOOK_E8M0FNU) return std::ldexp(1, static_cast<int>(bits) - 127);
  const Float f = float_of(type);
  const int top = (1 << f.exponent_bits) - 1;
  const int exponent = bits >> f.mantissa_bits & top, mantissa = bits & ((1 << f.mantissa_bits) - 1);
  const double sign = bits >> (f.exponent_bits + f.mantissa_bits) & 1 ? -1 : 1;
  const bool ieee = type == BILLHOOK_F16 || type == BILLHOOK_BF16;  // the others have no infinities
  if (ieee && exponent == top) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  if (type == BILLHOOK_E4M3FN && exponent == top && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double fraction = std::ldexp(mantissa, -f.mantissa_bits) + (exponent > 0);
  return sign * std::ldexp(fraction, (exponent > 0 ? exponent : 1) - f.bias());
}

// The e4m3 number nearest to a value, of two the even one, at most 448.
inline double round_to_e4m3(double value) {
  const Float f = float_of(BILLHOOK_E4M3FN);
  const int exponent = value == 0 ? 1 - f.bias() : std::max(std::ilogb(value), 1 - f.bias());
  const double step = std::ldexp(1, exponent - f.mantissa_bits), rounded = std::nearbyint(value / step) * step;
  return std::min(std::max(rounded, -448.0), 448.0);
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint32_t below(uint32_t end) { return static_cast<uint32_t>((engine_() >> 32) * end >> 32); }

  // A number of magnitude 2^-4 to 2, as bits of its type; any one of s8.
  uint32_t number(BillhookType type, bool positive = false) {
    if (type == BILLHOOK_E8M0FNU) return 127 - below(5);
    if (type == BILLHOOK_S8) return below(256);
    const Float f = float_of(type);
    const uint32_t exponent = f.bias() - below(5);
    return (((positive ? 0 : below(2)) << f.exponent_bits | exponent) << f.mantissa_bits) | below(1u << f.mantissa_bits);
  }

  // Any code of a weight type that stands for a number.
  uint8_t code(BillhookType type) {
    const uint32_t code = below(1u << bits_of(type));
    return static_cast<uint8_t>(type == BILLHOOK_E4M3FN && (code & 0x7f) == 0x7f ? code ^ 1 : code);
  }

  float weight() { return static_cast<float>(below(1 << 16)) / (1 << 16); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace test
