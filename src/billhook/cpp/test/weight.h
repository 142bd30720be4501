// Random quantized weights, and how they are packed: docs/layout.md, "Packed weights", said again in C++.
#pragma once
#include <cstring>
#include <vector>

#include "numbers.h"

namespace test {

constexpr int kStrip = 64;  // blocks of 64 output x 64 input features

inline int divide_up(int a, int b) { return (a + b - 1) / b; }

// The weights of all experts (one if dense), unpacked: codes [k, n], scales and zeros [groups, n], each expert's in turn.
struct Weight {
  BillhookType b, s, zero;  // types of codes, scales and zero points
  int n, k, group_size, experts;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  std::vector<uint8_t> zeros;

  Weight(BillhookType b_, BillhookType s_, BillhookType zero_, int n_, int k_, int group_size_, int experts_, Random& random)
      : b(b_), s(s_), zero(zero_), n(n_), k(k_), group_size(group_size_), experts(experts_) {
    codes.resize(static_cast<size_t>(experts) * k * n);
    for (uint8_t& code : codes) code = random.code(b);
    scales.resize(static_cast<size_t>(experts) * groups() * n);
    const bool positive = (s == BILLHOOK_E4M3FN && !folded()) || b == BILLHOOK_E4M3FN;  // these formats have no other scales
    for (uint16_t& scale : scales) scale = static_cast<uint16_t>(random.number(s, positive));
    if (has_zeros(b)) {
      zeros.resize(scales.size());
      for (uint8_t& one : zeros) one = random.code(b);
    }
  }

  bool folded() const { return folds(b, s); }
  int groups() const { return group_size == -1 ? 1 : divide_up(k, group_size); }
  int packed_groups() const { return group_size == -1 ? 1 : divide_up(divide_up(k, kStrip) * kStrip, group_size); }

  double value(int expert, int row, int column) const {
    const int group = group_size == -1 ? 0 : row / group_size;
    const size_t at = (static_cast<size_t>(expert) * groups() + group) * n + column;
    const double code = value_of(b, codes[(static_cast<size_t>(expert) * k + row) * n + column]);
    const double product = (zeros.empty() ? code : code - zeros[at]) * value_of(s, scales[at]);
    return folded() ? round_to_e4m3(product) : product;
  }
};

// The place of output feature n and input feature k within a block. Both axes split as the row operand of
// mma.m16n8k16 does: n = 16 i + 8 h + g, k = 16 j + 8 q + 2 t + o, lane = 4 g + t.
struct Place {
  int i, h, g, j, q, t, o;

  Place(int n, int k)
      : i(n / 16), h(n / 8 % 2), g(n % 8), j(k / 16), q(k / 8 % 2), t(k % 8 / 2), o(k % 2) {}

  int lane() const { return 4 * g + t; }
  int nibble() const { return ((i * 32 + lane()) * 4 + j) * 8 + 4 * o + 2 * q + h; }                       // 4-bit codes
  // Those of folded weights: a lane has four neighbours along k of two rows.
  int folded_nibble() const { return ((i * 32 + 4 * g + 2 * q + t / 2) * 4 + j) * 8 + 4 * h + 2 * (t % 2) + o; }
  int byte() const { return (((i * 2 + j / 2) * 32 + lane()) * 4 + 2 * (j % 2) + h) * 4 + 2 * o + q; }  // 8-bit codes
};

inline std::vector<uint8_t> pack_codes(const Weight& w) {
  const int bits = bits_of(w.b), strips = divide_up(w.n, kStrip), blocks = divide_up(w.k, kStrip);
  const size_t block_bytes = kStrip * kStrip * bits / 8;
  const uint8_t padding = static_cast<uint8_t>(bias_of(w.b) | (bits == 4 ? bias_of(w.b) << 4 : 0));
  std::vector<uint8_t> packed(static_cast<size_t>(w.experts) * strips * blocks * block_bytes, padding);
  for (int expert = 0; expert < w.experts; ++expert)
    for (int k = 0; k < w.k; ++k)
      for (int n = 0; n < w.n; ++n) {
        const uint8_t code = w.codes[(static_cast<size_t>(expert) * w.k + k) * w.n + n];
        const size_t block = (static_cast<size_t>(expert) * strips + n / kStrip) * blocks + k / kStrip;
        uint8_t* const to = packed.data() + block * block_bytes;
        const Place place(n % kStrip, k % kStrip);
        if (bits == 8) {
          to[place.byte()] = code;
          continue;
        }
        const int nibble = w.folded() ? place.folded_nibble() : place.nibble();
        uint8_t& pair = to[nibble / 2];
        const int shift = nibble % 2 * 4;
        pair = static_cast<uint8_t>((pair & ~(15 << shift)) | code << shift);
      }
  return packed;
}

// Scales, or what else there is one of for each group and output feature: [groups, n] -> [strips, packed groups, 64].
// Nothing stays nothing.
template <class T, class Source>
std::vector<T> pack_groups(const Weight& w, const std::vector<Source>& values, T (*convert)(const Weight&, Source)) {
  const int strips = divide_up(w.n, kStrip);
  if (values.empty()) return {};
  std::vector<T> packed(static_cast<size_t>(w.experts) * strips * w.packed_groups() * kStrip, T{});
  for (int expert = 0; expert < w.experts; ++expert)
    for (int group = 0; group < w.groups(); ++group)
      for (int n = 0; n < w.n; ++n) {
        const Place place(n % kStrip, 0);
        const size_t strip = static_cast<size_t>(expert) * strips + n / kStrip;
        packed[(strip * w.packed_groups() + group) * kStrip + 8 * place.g + 2 * place.i + place.h] =
            convert(w, values[(static_cast<size_t>(expert) * w.groups() + group) * w.n + n]);
      }
  return packed;
}

template <class T>
std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::vector<uint8_t> pack_scales(const Weight& w) {
  if (bits_of(w.s) == 8)
    return pack_groups<uint8_t, uint16_t>(w, w.scales,
                                          [](const Weight&, uint16_t bits) { return static_cast<uint8_t>(bits); });
  return bytes_of(pack_groups<uint16_t, uint16_t>(w, w.scales, [](const Weight&, uint16_t bits) { return bits; }));
}

// The bits of an integer 0 .. 255 as a 16-bit number, which holds it exactly.
inline uint16_t integer_bits(BillhookType type, uint8_t integer) {
  if (integer == 0) return 0;
  const Float f = float_of(type);
  const int exponent = std::ilogb(static_cast<double>(integer));
  const int mantissa = (integer - (1 << exponent)) << f.mantissa_bits >> exponent;
  return static_cast<uint16_t>((exponent + f.bias()) << f.mantissa_bits | mantissa);
}

inline std::vector<uint8_t> pack_zeros(const Weight& w) {
  return bytes_of(
      pack_groups<uint16_t, uint8_t>(w, w.zeros, [](const Weight& of, uint8_t zero) { return integer_bits(of.zero, zero); }));
}

}  // namespace test
