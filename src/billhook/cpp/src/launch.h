// From a chosen kernel to a launch on the current GPU: what is known of the GPU, grids, tensor maps, launch attributes.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "billhook/problem/grouping.cuh"
#include "billhook/problem/params.cuh"
#include "dispatch.h"

namespace billhook {

extern const void* const kFunctions[];  // the kernels of kKernels, in that order
extern const void* const kRouteFunction;
extern const void* const kGroupFunction;

constexpr int32_t kRouteThreads = 1024;  // kThreads of billhook/kernel/route.cuh
constexpr int32_t kMaxExperts = 1024;    // kMaxExperts of the same
constexpr int32_t kGroupThreads = 256;   // kThreads of billhook/kernel/group.cuh
constexpr int32_t kGroupCtasPerSm = 4;   // a copy is bound by memory: enough to keep it busy

// The current GPU.
struct Gpu {
  int32_t index, major, minor, multiprocessors;
};

// Finds the current GPU; asked of CUDA once for each.
cudaError_t find_gpu(Gpu* gpu);

// Loads every kernel that runs on this GPU; finds the bytes of workspace that are enough for all of them.
cudaError_t load_all(const Gpu& gpu, size_t* workspace_bytes);

// Finds how many CTAs of a kernel share the work, loading the kernel if this is the first call for it on this GPU.
// `tiles_m`: tiles along m, for Mixture-of-Experts layers the most there can be.
cudaError_t find_grid(const Gpu& gpu, const Kernel& kernel, const GemmParams& params, int32_t tiles_m, int32_t* ctas);

// What a tensor map of A says beside what `GemmParams` does.
struct Activations {
  int32_t rows, element_bytes;
};

// Launches a GEMM on `ctas` CTAs; the workspace is in `params`.
cudaError_t launch_gemm(const Gpu& gpu, const Kernel& kernel, const GemmParams& params, const Activations& a, int32_t ctas,
                        cudaStream_t stream);

// Launches the routing kernel, one CTA per expert; `arguments` as in billhook/kernel/route.cuh.
cudaError_t launch_route(const Gpu& gpu, int32_t num_experts, void** arguments, cudaStream_t stream);

// Launches the kernel that copies rows of A into the routing's order.
cudaError_t launch_group(const Gpu& gpu, const GroupParams& params, cudaStream_t stream);

}  // namespace billhook
