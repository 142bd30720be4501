// The exact result of one output in double, and how far a kernel may be from it: docs/numerics.md, said again in C++.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "weight.h"

namespace test {

struct Exact {
  double value = 0, magnitude = 0, activations = 0;  // sums of a w, of |a w|, of |a|

  void multiply(double factor) {
    value *= factor;
    magnitude *= std::fabs(factor);
    activations *= std::fabs(factor);
  }
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

// A column of a weight, multiplied with rows of A.
class Column {
 public:
  Column(const Weight& weight, int expert, int column) : values_(weight.k) {
    for (int k = 0; k < weight.k; ++k) values_[k] = weight.value(expert, k, column);
  }

  // Multiplies with a row of A: numbers of a type, times the row's scale.
  Exact dot(BillhookType a_type, const uint16_t* a, double scale) const {
    Exact sum;
    for (size_t k = 0; k < values_.size(); ++k) {
      const double one = value_of(a_type, a[k]) * scale;
      sum.add(one * values_[k]);
      sum.activations += std::fabs(one);
    }
    return sum;
  }

 private:
  std::vector<double> values_;
};

// Bounds one output of a kernel that adds in float32, or 8-bit activations as docs/numerics.md says, and rounds once.
class Bound {
 public:
  Bound(const Weight& weight, BillhookType a_type, BillhookType d_type, bool rounds_weights) {
    const Float f = float_of(d_type);
    unit_ = std::ldexp(1, -f.mantissa_bits - 1);
    floor_ = std::ldexp(1, -f.bias() - f.mantissa_bits);  // half the smallest subnormal
    const bool whole = weight.group_size == -1 || weight.folded();  // no scale of a group multiplies sums
    const int blocks = divide_up(weight.k, kStrip), group = whole ? weight.k : weight.group_size;
    const int scaled = whole ? 0 : divide_up(weight.k, std::min(group, kStrip));
    const double steps = is_eight_bit_activation(a_type)
                             ? scaled + 2 * blocks + 6
                             : 18 * divide_up(weight.k, 16) + 2 * weight.groups() + blocks + 20;
    const int cuts = a_type == BILLHOOK_E4M3FN ? divide_up(std::min(weight.k, group), 32) : 0;  // sums that lose 2^-13
    const double gamma = steps * 0x1p-23 / (1 - steps * 0x1p-23) + cuts * 0x1p-13;
    const double rounding = rounds_weights ? unit_ : 0;
    magnitude_ = (gamma + rounding * (1 + gamma)) * (1 + unit_);
    activations_ = rounds_weights ? floor_ * (1 + gamma) * (1 + unit_) : 0;
    rms_ = std::sqrt(unit_ * unit_ + rounding * rounding + cuts * 0x1p-24);
  }

  double allowed(const Exact& exact) const {
    return unit_ * std::fabs(exact.value) + magnitude_ * exact.magnitude + activations_ * exact.activations + floor_;
  }
  double rms() const { return rms_; }  // of the errors of many outputs, relative to that of the outputs

 private:
  double unit_, floor_, magnitude_, activations_, rms_;
};

}  // namespace test
