// A CUDA runtime and kernels that compute on the host in double, so that an emitted library and its test program run without a
// GPU. A GEMM reads its arguments as the device would: A through the tensor map if the kernel has one, weights from their
// packed words, rows by the routing. The environment variable FAULT makes kernels err in one way.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "launch.h"
#include "weight.h"

namespace {

using billhook::GemmParams;
using billhook::Kernel;

bool fault(const char* what) {
  const char* const asked = std::getenv("FAULT");
  return asked && !std::strcmp(asked, what);
}

// What the driver keeps of a matrix.
struct Map {
  const void* address;
  uint64_t features, rows, stride;
  uint32_t box_bytes, box_rows, element_bytes;
};

CUresult encode(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t, void* address, const cuuint64_t* sizes,
                const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint32_t element = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  if (reinterpret_cast<uintptr_t>(address) % 16 || strides[0] % 16 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B)
    return CUDA_ERROR_INVALID_VALUE;
  const Map kept{address, sizes[0], sizes[1], strides[0], box[0] * element, box[1], element};
  std::memcpy(map, &kept, sizeof(kept));
  return CUDA_SUCCESS;
}

uint32_t element(const void* memory, size_t at, int bits) {
  if (bits == 32) return static_cast<const uint32_t*>(memory)[at];
  if (bits == 16) return static_cast<const uint16_t*>(memory)[at];
  return static_cast<const uint8_t*>(memory)[at];
}

uint16_t round_to(BillhookType type, double value) {
  const test::Float f = test::float_of(type);
  if (std::isnan(value)) return 0x7fff;
  if (value == 0) return 0;
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, 1 - f.bias());
  uint32_t steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), f.mantissa_bits - exponent)));
  const uint32_t fields = steps + (static_cast<uint32_t>(exponent + f.bias() - 1) << f.mantissa_bits);
  return static_cast<uint16_t>(fields | (value < 0 ? 0x8000 : 0));
}

class Gemm {
 public:
  Gemm(const Kernel& kernel, const GemmParams& params, const Map* map) : kernel_(kernel), p_(params), map_(map) {}

  bool run() const {
    if (map_ && (map_->box_bytes != 128 || map_->box_rows != static_cast<uint32_t>(kernel_.tile_m / kernel_.cluster) ||
                 map_->element_bytes * 8 != static_cast<uint32_t>(bits(24)) || map_->features != static_cast<uint64_t>(p_.k)))
      return false;
    for (int expert = 0; expert <= last_expert(); ++expert)
      for (int n = 0; n < p_.n; ++n) {
        const std::vector<double> column = weights(expert, n);
        for (int row = 0; row < rows(); ++row) store(expert, n, row, column);
      }
    return true;
  }

 private:
  BillhookType type(int shift) const { return static_cast<BillhookType>(kernel_.types >> shift & 0xff); }
  int bits(int shift) const { return test::bits_of(type(shift)); }
  int rows() const { return kernel_.indexed ? *p_.num_tokens_padded : p_.m; }

  int last_expert() const {
    int last = 0;
    for (int block = 0; kernel_.indexed && block < rows() / kernel_.tile_m; ++block)
      last = std::max(last, p_.expert_ids[block]);
    return last;
  }

  std::vector<double> weights(int expert, int n) const {
    std::vector<double> column(p_.k);
    const size_t strip = static_cast<size_t>(expert) * p_.strips + n / 64;
    const test::Place of_scale(n % 64, 0);
    for (int k = 0; k < p_.k; ++k) {
      const test::Place place(n % 64, k % 64);
      const size_t block = (strip * p_.blocks + k / 64) * 64 * 64 * bits(16) / 8;
      const uint8_t* const codes = reinterpret_cast<const uint8_t*>(p_.codes) + block;
      const bool folds = test::folds(type(16), type(8));
      const int nibble = folds ? place.folded_nibble() : place.nibble();
      const uint32_t code = bits(16) == 8 ? codes[place.byte()] : codes[nibble / 2] >> nibble % 2 * 4 & 15;
      const int group = kernel_.group_size == -1 ? 0 : k / kernel_.group_size;
      const size_t at = (strip * p_.groups + group) * 64 + 8 * of_scale.g + 2 * of_scale.i + of_scale.h;
      const double zero = p_.zeros ? test::value_of(type(0), element(p_.zeros, at, bits(0))) : 0;
      column[k] = (test::value_of(type(16), code) - zero) * test::value_of(type(8), element(p_.scales, at, bits(8)));
      if (folds) column[k] = test::round_to_e4m3(column[k]);
    }
    return column;
  }

  // Computes place `row`, of the matrix or of the routing, if it is this expert's.
  void store(int expert, int n, int row, const std::vector<double>& column) const {
    int id = row, token = row;
    if (kernel_.indexed) {
      if (p_.expert_ids[row / kernel_.tile_m] != expert) return;
      id = p_.sorted_token_ids[row];
      if (id >= p_.m) return;
      token = id / p_.top_k;
    }
    const int source = kernel_.grouped ? row : token;
    const char* a = static_cast<const char*>(p_.a) + static_cast<size_t>(source) * p_.lda * bits(24) / 8;
    if (map_) {
      if (static_cast<uint64_t>(source) >= map_->rows) return;
      a = static_cast<const char*>(map_->address) + source * map_->stride;
    }
    double sum = 0;
    for (int k = 0; k < p_.k - fault("product"); ++k)
      sum += test::value_of(type(24), element(a, k, bits(24))) * column[k];
    if (p_.token_scales) sum *= p_.token_scales[token];
    const size_t channel = static_cast<size_t>(expert) * p_.n + n;
    if (p_.channel_scales) sum *= p_.channel_scales[fault("channel") ? n % 16 : channel];
    if (p_.global_scales) sum *= p_.global_scales[expert];
    if (p_.bias) sum += test::value_of(type(0), element(p_.bias, channel, 16));
    if (p_.topk_weights) sum *= p_.topk_weights[id];
    if (fault("row") && id == 0) return;
    static_cast<uint16_t*>(p_.d)[static_cast<size_t>(id) * p_.ldd + n] = round_to(type(0), sum);
  }

  const Kernel& kernel_;
  const GemmParams& p_;
  const Map* map_;
};

void route(const int32_t* ids, int32_t count, int32_t experts, int32_t block_m, int32_t* sorted, int32_t* expert_ids,
           int32_t* padded) {
  int32_t used = 0;
  for (int32_t expert = 0; expert < experts; ++expert) {
    for (int32_t row = 0; row < count; ++row)
      if (ids[row] == expert) {
        expert_ids[used / block_m] = expert;
        sorted[used++] = row;
      }
    while (used % block_m) sorted[used++] = count;
  }
  *padded = used;
}

void group(const billhook::GroupParams& p) {
  for (int32_t row = 0; row < *p.num_tokens_padded; ++row) {
    const int32_t id = p.sorted_token_ids[row];
    if (id >= p.rows || fault("group")) continue;
    std::memcpy(static_cast<void*>(p.grouped + static_cast<size_t>(row) * p.chunks),
                p.a + static_cast<size_t>(id / p.top_k) * p.stride, 16 * static_cast<size_t>(p.chunks));
  }
}

template <class T>
T& argument(void** arguments, int at) {
  return *static_cast<T*>(arguments[at]);
}

}  // namespace

extern "C" {

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrComputeCapabilityMinor ? 0 : 132;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(encode);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  if (function == billhook::kRouteFunction) {
    route(argument<const int32_t*>(arguments, 0), argument<int32_t>(arguments, 1), argument<int32_t>(arguments, 2),
          argument<int32_t>(arguments, 3), argument<int32_t*>(arguments, 4), argument<int32_t*>(arguments, 5),
          argument<int32_t*>(arguments, 6));
    return cudaSuccess;
  }
  if (function == billhook::kGroupFunction) return group(argument<billhook::GroupParams>(arguments, 0)), cudaSuccess;
  const Kernel* kernel = billhook::kKernels;
  while (billhook::kFunctions[kernel - billhook::kKernels] != function) ++kernel;
  Map map;
  for (int i = 0; i < 2 && kernel->boxes[i]; ++i) {  // a pair of the same rows: in boxes, and what those leave over
    const uint32_t box_rows = kernel->boxes[i];
    for (int left = 0; left < 2; ++left) {
      Map one;
      std::memcpy(&one, static_cast<const CUtensorMap*>(arguments[1 + i]) + left, sizeof(one));
      if (i == 0 && left == 0) map = one;
      const uint32_t rest = one.rows % box_rows;
      if (one.box_rows != (left && rest ? rest : box_rows) || one.address != map.address || one.rows != map.rows ||
          one.stride != map.stride || one.features != map.features || one.element_bytes != map.element_bytes)
        return cudaErrorInvalidValue;
    }
  }
  const GemmParams& params = argument<GemmParams>(arguments, 0);
  const bool ran = config->gridDim.x % kernel->cluster == 0 && Gemm(*kernel, params, kernel->boxes[0] ? &map : nullptr).run();
  return ran ? cudaSuccess : cudaErrorInvalidValue;
}

}  // extern "C"
