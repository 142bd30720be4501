// What a generated Marlin folder needs of its tree, as far as a host compiler can check it: scalar types with
// compile-time ids, the kernel template's declaration, and the checking macros, which throw.
#pragma once

#include <cstdint>
#include <stdexcept>

#define MARLIN_NAMESPACE_NAME marlin_stub
#define MARLIN_KERNEL_PARAMS int
#define __global__
#define TORCH_CHECK(condition, message) \
  if (!(condition)) refuse(message)
#define STD_TORCH_CHECK(condition, message) TORCH_CHECK(condition, message)

[[noreturn, gnu::cold]] inline void refuse(char const* message) { throw std::runtime_error(message); }

namespace vllm {

using ScalarTypeId = int64_t;

struct ScalarType {
  uint8_t exponent, mantissa;
  bool is_signed;
  int32_t bias;

  constexpr ScalarTypeId id() const {
    return ScalarTypeId(exponent) | ScalarTypeId(mantissa) << 8 | ScalarTypeId(is_signed) << 16 |
           ScalarTypeId(bias) << 17;
  }
  constexpr bool operator==(ScalarType const& other) const {
    return exponent == other.exponent && mantissa == other.mantissa && is_signed == other.is_signed &&
           bias == other.bias;
  }
};

inline constexpr ScalarType kFloat16{5, 10, true, 0};
inline constexpr ScalarType kBFloat16{8, 7, true, 0};
inline constexpr ScalarType kFE4M3fn{4, 3, true, 0};
inline constexpr ScalarType kFE2M1f{2, 1, true, 0};
inline constexpr ScalarType kFE8M0fnu{8, 0, false, 0};
inline constexpr ScalarType kS8{0, 7, true, 0};
inline constexpr ScalarType kU4{0, 4, false, 0};
inline constexpr ScalarType kU4B8{0, 4, false, 8};
inline constexpr ScalarType kU8B128{0, 8, false, 128};
inline constexpr ScalarType kU8{0, 8, false, 0};  // no release has kernels for it

}  // namespace vllm

namespace MARLIN_NAMESPACE_NAME {

template <vllm::ScalarTypeId a, vllm::ScalarTypeId b, vllm::ScalarTypeId c, vllm::ScalarTypeId s, int threads,
          int thread_m_blocks, int thread_n_blocks, int thread_k_blocks, bool m_block_size_8, int stages,
          int group_blocks, bool is_zp_float>
__global__ void Marlin(MARLIN_KERNEL_PARAMS);

}  // namespace MARLIN_NAMESPACE_NAME
