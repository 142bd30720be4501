// What the generated Machete sources take from a vLLM tree, reduced to types with names: enough to compile and run
// the dispatch on a host. A test defines STABLE for the releases on the stable ABI of torch.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef STABLE
  #define SCALARS torch::headeronly
  #define TENSORS torch::stable
namespace torch::headeronly {
#else
  #define SCALARS at
  #define TENSORS torch
namespace at {
#endif
enum class ScalarType { Half, BFloat16, Float, Char, Float8_e4m3fn, Byte };
inline const char* toString(ScalarType type) {
  constexpr const char* names[] = {"f16", "bf16", "f32", "s8", "e4m3", "byte"};
  return names[static_cast<int>(type)];
}
}  // namespace SCALARS

namespace TENSORS {
struct Tensor {
  int64_t sizes[2];
  SCALARS::ScalarType type;
  std::string made_by;
  int64_t size(int dim) const { return sizes[dim]; }
  SCALARS::ScalarType scalar_type() const { return type; }
};
}  // namespace TENSORS

namespace vllm {
struct ScalarType {
  const char* name;
  int bits;
  std::string str() const { return name; }
  int size_bits() const { return bits; }
  bool operator==(ScalarType const& other) const { return str() == other.str(); }
};
inline constexpr ScalarType kU4{"u4", 4}, kU8{"u8", 8}, kU4B8{"u4b8", 4}, kU8B128{"u8b128", 8}, kFE4M3fn{"e4m3", 8};
}  // namespace vllm

namespace cutlass {
struct half_t; struct bfloat16_t; struct float_e4m3_t; struct uint4b_t; struct vllm_uint4b8_t; struct vllm_uint8b128_t;
namespace gemm { struct KernelTmaWarpSpecializedCooperative; struct StreamKScheduler; }
namespace epilogue { struct TmaWarpSpecializedCooperative; namespace collective { struct EpilogueTileAuto; } }
namespace layout { struct ColumnMajor; }
}  // namespace cutlass

struct NotImplemented : std::runtime_error { using std::runtime_error::runtime_error; };
inline std::string words(std::string const& text) { return text; }
inline std::string words(int64_t number) { return std::to_string(number); }
#ifndef STABLE
inline std::string words(at::ScalarType type) { return at::toString(type); }
#endif
template <class... Words>
[[noreturn]] void refuse(Words const&... all) { throw NotImplemented((words(all) + ...)); }
#ifdef STABLE
  #define STD_TORCH_CHECK_NOT_IMPLEMENTED(ok, ...) if (!(ok)) { refuse(__VA_ARGS__); }
#else
  #define TORCH_CHECK_NOT_IMPLEMENTED(ok, ...) if (!(ok)) { refuse(__VA_ARGS__); }
#endif

namespace machete {
template <int> struct Constant;
using _1 = Constant<1>; using _2 = Constant<2>; using _16 = Constant<16>; using _32 = Constant<32>;
using _64 = Constant<64>; using _128 = Constant<128>; using _256 = Constant<256>;
template <int size> using Int = Constant<size>;
template <class...> struct Shape;

using Scalar = SCALARS::ScalarType;
using Tensor = TENSORS::Tensor;

struct MMArgs {
  Tensor const& A;
  Tensor const& B;
  vllm::ScalarType const& b_type;
  std::optional<Scalar> const& maybe_out_type;
  std::optional<Tensor> const& maybe_group_scales;
  std::optional<Tensor> const& maybe_group_zeros;
  std::optional<int64_t> maybe_group_size;
  std::optional<Tensor> const& maybe_channel_scales;
  std::optional<Tensor> const& maybe_token_scales;
  std::optional<std::string> maybe_schedule;
};
struct SupportedSchedulesArgs {
  Scalar a_type;
  vllm::ScalarType b_type;
  std::optional<Scalar> maybe_group_scales_type, maybe_group_zeros_type, maybe_channel_scales_type;
  std::optional<Scalar> maybe_token_scales_type, maybe_out_type;
};
struct PrepackBArgs {
  Tensor const& B;
  Scalar a_type;
  vllm::ScalarType b_type;
  std::optional<Scalar> maybe_group_scales_type;
};
Tensor mm_dispatch(MMArgs args);
Tensor prepack_B_dispatch(PrepackBArgs args);
std::vector<std::string> supported_schedules_dispatch(SupportedSchedulesArgs args);

template <class A, class B, class D, class Acc, class GroupScale, class GroupZero, class ChannelScale, class TokenScale,
          class KernelSchedule, class Schedule>
struct MacheteKernelTemplate { using Sch = Schedule; };
template <class A, class B, class Convert, class Acc, class Layout, class KernelSchedule>
struct PrepackedLayoutBTemplate;

// The compiler spells the template arguments out.
template <class...> std::string spelled() { return __PRETTY_FUNCTION__; }
template <class Kernel> Tensor run_impl(MMArgs args) {
  using Sch = typename Kernel::Sch;
  return {{}, args.A.type, spelled<Kernel, typename Sch::TileShapeNM, typename Sch::ClusterShape,
      typename Sch::EpilogueSchedule, typename Sch::TileScheduler, typename Sch::EpilogueTileType>()};
}
template <class Layout> Tensor prepack_impl(Tensor const B) { return {{}, B.type, spelled<Layout>()}; }
}  // namespace machete
