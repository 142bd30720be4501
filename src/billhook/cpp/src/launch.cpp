#include "launch.h"

#include <cuda.h>
#include <cudaTypedefs.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace billhook {
namespace {

struct Device {
  std::once_flag asked;
  cudaError_t error = cudaSuccess;
  Gpu gpu{};
  std::unique_ptr<std::atomic<int32_t>[]> resident;  // CTAs of each kernel that an SM holds; 0: not loaded yet
};

cudaError_t ask(int32_t index, Device& device) {
  Gpu& gpu = device.gpu;
  gpu.index = index;
  const std::pair<cudaDeviceAttr, int32_t*> questions[] = {
      {cudaDevAttrComputeCapabilityMajor, &gpu.major},
      {cudaDevAttrComputeCapabilityMinor, &gpu.minor},
      {cudaDevAttrMultiProcessorCount, &gpu.multiprocessors},
  };
  for (const auto& [attribute, answer] : questions)
    if (const cudaError_t error = cudaDeviceGetAttribute(answer, attribute, index)) return error;
  device.resident.reset(new std::atomic<int32_t>[kKernelCount]());
  return cudaSuccess;
}

std::vector<Device>& devices() {
  static std::vector<Device> all([] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
  }());
  return all;
}

// Loads a kernel; racing threads do the same thing twice.
cudaError_t find_resident(const Gpu& gpu, const Kernel& kernel, int32_t* resident) {
  std::atomic<int32_t>& known = devices()[gpu.index].resident[&kernel - kKernels];
  *resident = known.load(std::memory_order_acquire);
  if (*resident > 0) return cudaSuccess;
  const void* const function = kFunctions[&kernel - kKernels];
  cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
  if (error) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(resident, function, kernel.threads, kernel.shared_bytes);
  if (error) return error;
  *resident = std::max(*resident, 1);
  known.store(*resident, std::memory_order_release);
  return cudaSuccess;
}

// Describes A, whose elements are only moved, to the copy engine: boxes of 128 bytes of features x some tokens, swizzled as wgmma
// reads them.
cudaError_t make_tensor_map(int32_t box_rows, const GemmParams& params, const Activations& a, CUtensorMap* map) {
  static void* function = nullptr;
  static const cudaError_t found = [] {
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result != cudaDriverEntryPointSuccess ? cudaErrorCallRequiresNewerDriver : error;
  }();
  if (found != cudaSuccess) return found;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(params.k), static_cast<cuuint64_t>(a.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(params.lda) * a.element_bytes};
  const cuuint32_t box[] = {128u / a.element_bytes, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUtensorMapDataType type = a.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16;
  const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function)(
      map, type, 2, const_cast<void*>(params.a), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// Makes a pair of them: of the tokens that a CTA fetches at once, and of those that are left at the end of A.
cudaError_t make_tensor_maps(int32_t box_rows, const GemmParams& params, const Activations& a, CUtensorMap maps[2]) {
  const int32_t rest = static_cast<int32_t>(a.rows % box_rows);
  const cudaError_t error = make_tensor_map(box_rows, params, a, &maps[0]);
  return error ? error : make_tensor_map(rest > 0 ? rest : box_rows, params, a, &maps[1]);
}

cudaError_t launch(const void* function, int32_t ctas, int32_t threads, int32_t shared_bytes, bool overlaps, void** arguments,
                   cudaStream_t stream) {
  cudaLaunchAttribute attribute;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  if (overlaps) {  // the kernel may start before the one ahead of it has ended; it waits for it itself
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelExC(&config, function, arguments);
}

}  // namespace

cudaError_t find_gpu(Gpu* gpu) {
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index)) return error;
  if (index >= static_cast<int>(devices().size())) return cudaErrorInvalidDevice;
  Device& device = devices()[index];
  std::call_once(device.asked, [&] { device.error = ask(index, device); });
  *gpu = device.gpu;
  return device.error;
}

cudaError_t load_all(const Gpu& gpu, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  for (const Kernel* kernel = kKernels; kernel != kKernels + kKernelCount; ++kernel) {
    if (!runs_on(kTargets[kernel->target], gpu.major, gpu.minor)) continue;
    int32_t resident = 0;
    if (const cudaError_t error = find_resident(gpu, *kernel, &resident)) return error;
    const size_t bytes = static_cast<size_t>(resident) * gpu.multiprocessors * kernel->workspace_bytes;
    *workspace_bytes = std::max(*workspace_bytes, bytes);
  }
  return cudaSuccess;
}

cudaError_t find_grid(const Gpu& gpu, const Kernel& kernel, const GemmParams& params, int32_t tiles_m, int32_t* ctas) {
  int32_t resident = 0;
  if (const cudaError_t error = find_resident(gpu, kernel, &resident)) return error;
  const Work work{tiles_m, params.strips, params.blocks, params.split_k != 0};
  *ctas = count_ctas(kernel, work, gpu.multiprocessors, resident);
  return cudaSuccess;
}

cudaError_t launch_gemm(const Gpu& gpu, const Kernel& kernel, const GemmParams& params, const Activations& a, int32_t ctas,
                        cudaStream_t stream) {
  CUtensorMap maps[2][2];
  void* arguments[] = {const_cast<GemmParams*>(&params), maps[0], maps[1]};  // a kernel reads as many as it has parameters
  for (int32_t i = 0; i < 2 && kernel.boxes[i] > 0; ++i)
    if (const cudaError_t error = make_tensor_maps(kernel.boxes[i], params, a, maps[i])) return error;
  const bool overlaps = gpu.major >= 9 && kTargets[kernel.target].major >= 9;
  return launch(kFunctions[&kernel - kKernels], ctas, kernel.threads, kernel.shared_bytes, overlaps, arguments, stream);
}

cudaError_t launch_route(const Gpu& gpu, int32_t num_experts, void** arguments, cudaStream_t stream) {
  return launch(kRouteFunction, num_experts, kRouteThreads, 0, gpu.major >= 9, arguments, stream);
}

cudaError_t launch_group(const Gpu& gpu, const GroupParams& params, cudaStream_t stream) {
  void* arguments[] = {const_cast<GroupParams*>(&params)};
  const int32_t ctas = kGroupCtasPerSm * gpu.multiprocessors;
  return launch(kGroupFunction, ctas, kGroupThreads, 0, gpu.major >= 9, arguments, stream);
}

}  // namespace billhook
