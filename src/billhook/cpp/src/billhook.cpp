#include "billhook.h"

#include <algorithm>

#include "launch.h"

namespace billhook {
namespace {

constexpr int32_t kStrip = 64;  // packed weights come in blocks of 64 (n) x 64 (k)

// What a dense GEMM, whose `moe` is null everywhere below, says of experts.
constexpr BillhookMoeGemm kNoExperts{};

// A call, checked and prepared up to its launch.
struct Call {
  Gpu gpu;
  const Kernel* kernel;
  GemmParams params;
  int32_t tiles_m, ctas;
  size_t workspace_bytes, grouped_bytes;
};

bool is_eight_bit_activation(BillhookType type) { return type == BILLHOOK_S8 || type == BILLHOOK_E4M3FN; }
// Whether weights are codes times scales, rounded to e4m3, and channels have one more scale each: W4A8.
bool folds(const BillhookGemm& p) { return p.b_type == BILLHOOK_U4B8 && p.s_type == BILLHOOK_E4M3FN; }
bool has_zeros(BillhookType type) { return type == BILLHOOK_U4 || type == BILLHOOK_U8; }

int32_t element_bytes(BillhookType type) {
  switch (type) {
    case BILLHOOK_F32: case BILLHOOK_S32: return 4;
    case BILLHOOK_F16: case BILLHOOK_BF16: return 2;
    default: return 1;
  }
}

bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

Problem problem_of(const BillhookGemm& p, const BillhookMoeGemm* moe) {
  const BillhookMoeGemm& experts = moe ? *moe : kNoExperts;
  return {pack_types(p.a_type, p.b_type, p.s_type, p.d_type),
          p.group_size, experts.num_experts, experts.top_k, p.n, p.k, p.m};
}

BillhookStatus check_sizes(const BillhookGemm& p, const BillhookMoeGemm* moe) {
  if (p.m < 1 || p.n < 16 || p.n % 16 || p.k < 16 || p.k % 16) return BILLHOOK_INVALID_SIZE;
  if (p.group_size != -1 && p.group_size < 1) return BILLHOOK_INVALID_SIZE;
  if (moe && (moe->num_experts < 1 || moe->num_experts > kMaxExperts)) return BILLHOOK_INVALID_SIZE;
  if (moe && (moe->top_k < 1 || moe->top_k > INT32_MAX / p.m)) return BILLHOOK_INVALID_SIZE;
  return BILLHOOK_OK;
}

BillhookStatus check_strides(const BillhookGemm& p) {
  const int64_t a_bytes = static_cast<int64_t>(p.lda) * element_bytes(p.a_type);
  const int64_t d_bytes = static_cast<int64_t>(p.ldd) * element_bytes(p.d_type);
  const bool fits = (p.lda == 0 || p.lda >= p.k) && (p.ldd == 0 || p.ldd >= p.n);
  return fits && a_bytes % 16 == 0 && d_bytes % 16 == 0 ? BILLHOOK_OK : BILLHOOK_INVALID_STRIDE;
}

BillhookStatus check_pointers(const BillhookGemm& p, const BillhookMoeGemm* moe) {
  const bool zeros = has_zeros(p.b_type), eight_bit = is_eight_bit_activation(p.a_type);
  if (!p.a || !p.codes || !p.scales || !p.d || (zeros && !p.zeros) || (eight_bit && !p.token_scales))
    return BILLHOOK_NULL_POINTER;
  if (folds(p) && !p.channel_scales) return BILLHOOK_NULL_POINTER;
  if ((!zeros && p.zeros) || (!eight_bit && (p.token_scales || p.channel_scales))) return BILLHOOK_UNEXPECTED_POINTER;
  if (p.global_scales && (p.s_type != BILLHOOK_E4M3FN || folds(p))) return BILLHOOK_UNEXPECTED_POINTER;
  if (moe && (!moe->sorted_token_ids || !moe->expert_ids || !moe->num_tokens_padded)) return BILLHOOK_NULL_POINTER;
  const void* const vectors[] = {p.a, p.codes, p.scales, p.zeros, p.channel_scales, p.d};
  for (const void* pointer : vectors)
    if (!is_aligned(pointer, 16)) return BILLHOOK_MISALIGNED;
  const BillhookMoeGemm& experts = moe ? *moe : kNoExperts;
  const void* const words[] = {p.token_scales,           p.global_scales,    experts.topk_weights,
                               experts.sorted_token_ids, experts.expert_ids, experts.num_tokens_padded};
  for (const void* pointer : words)
    if (!is_aligned(pointer, 4)) return BILLHOOK_MISALIGNED;
  return is_aligned(p.bias, 8) ? BILLHOOK_OK : BILLHOOK_MISALIGNED;
}

GemmParams params_of(const BillhookGemm& p, const BillhookMoeGemm* moe) {
  const BillhookMoeGemm& experts = moe ? *moe : kNoExperts;
  GemmParams params{};
  params.a = p.a;
  params.codes = static_cast<const u32*>(p.codes);
  params.scales = p.scales;
  params.zeros = p.zeros;
  params.channel_scales = p.channel_scales;
  params.token_scales = p.token_scales;
  params.global_scales = p.global_scales;
  params.bias = p.bias;
  params.d = p.d;
  params.sorted_token_ids = experts.sorted_token_ids;
  params.expert_ids = experts.expert_ids;
  params.num_tokens_padded = experts.num_tokens_padded;
  params.topk_weights = experts.topk_weights;
  params.top_k = std::max(experts.top_k, 1);
  params.m = p.m * params.top_k;
  params.n = p.n;
  params.k = p.k;
  params.lda = p.lda ? p.lda : p.k;
  params.ldd = p.ldd ? p.ldd : p.n;
  params.strips = (p.n + kStrip - 1) / kStrip;
  params.blocks = (p.k + kStrip - 1) / kStrip;
  params.groups = p.group_size == -1 ? 1 : (params.blocks * kStrip + p.group_size - 1) / p.group_size;
  params.split_k = !p.whole_tiles;
  return params;
}

// The bytes that the rows of A take in a routing's order, in so many blocks of `block_m`.
size_t bytes_of_grouped(const BillhookGemm& p, int32_t blocks, int32_t block_m) {
  return static_cast<size_t>(blocks) * block_m * p.k * element_bytes(p.a_type);
}

bool serves(const Gpu& gpu) {
  return std::any_of(kTargets, kTargets + kTargetCount,
                     [&](const Target& target) { return runs_on(target, gpu.major, gpu.minor); });
}

// Finds the GPU and the kernel; `block_m`: what the kernel must take at a time, 0 for any.
BillhookStatus choose(const BillhookGemm& p, const BillhookMoeGemm* moe, int32_t block_m, Gpu* gpu, const Kernel** kernel) {
  if (const BillhookStatus status = check_sizes(p, moe)) return status;
  if (find_gpu(gpu) != cudaSuccess) return BILLHOOK_CUDA_ERROR;
  const Problem problem = problem_of(p, moe);
  *kernel = select_kernel(problem, gpu->major, gpu->minor);
  if (*kernel == nullptr) return serves(*gpu) ? BILLHOOK_UNSUPPORTED_PROBLEM : BILLHOOK_UNSUPPORTED_GPU;
  if (block_m) *kernel = select_kernel_of(block_m, problem, gpu->major, gpu->minor);
  return *kernel ? BILLHOOK_OK : BILLHOOK_INVALID_BLOCK_M;
}

BillhookStatus prepare(const BillhookGemm& p, const BillhookMoeGemm* moe, Call* call) {
  if (moe && moe->block_m < 1) return BILLHOOK_INVALID_BLOCK_M;
  if (const BillhookStatus status = choose(p, moe, moe ? moe->block_m : 0, &call->gpu, &call->kernel)) return status;
  call->params = params_of(p, moe);
  const int32_t rows = call->params.m, tile_m = call->kernel->tile_m;
  call->tiles_m = moe ? billhook_route_blocks(rows, moe->num_experts, tile_m) : (rows + tile_m - 1) / tile_m;
  if (find_grid(call->gpu, *call->kernel, call->params, call->tiles_m, &call->ctas) != cudaSuccess)
    return BILLHOOK_CUDA_ERROR;
  call->workspace_bytes = static_cast<size_t>(call->ctas) * call->kernel->workspace_bytes;
  call->grouped_bytes = call->kernel->grouped ? bytes_of_grouped(p, call->tiles_m, tile_m) : 0;
  return BILLHOOK_OK;
}

BillhookStatus find_workspace(const BillhookGemm& p, const BillhookMoeGemm* moe, size_t* bytes) {
  if (bytes == nullptr) return BILLHOOK_NULL_POINTER;
  Call call;
  if (const BillhookStatus status = prepare(p, moe, &call)) return status;
  *bytes = call.workspace_bytes;
  return BILLHOOK_OK;
}

BillhookStatus check_room(const Call& call, const BillhookMoeGemm* moe, const void* workspace, size_t bytes) {
  const bool grouped = call.grouped_bytes > 0;
  if (workspace == nullptr || (grouped && !moe->grouped)) return BILLHOOK_NULL_POINTER;
  if (!is_aligned(workspace, 16) || (grouped && !is_aligned(moe->grouped, 16))) return BILLHOOK_MISALIGNED;
  if (bytes < call.workspace_bytes) return BILLHOOK_WORKSPACE_TOO_SMALL;
  return grouped && moe->grouped_bytes < call.grouped_bytes ? BILLHOOK_GROUPED_TOO_SMALL : BILLHOOK_OK;
}

// Copies the rows of A into the routing's order and has the GEMM read them there.
cudaError_t group(Call* call, const BillhookMoeGemm& moe, cudaStream_t stream) {
  GemmParams& params = call->params;
  const int32_t chunk = static_cast<int32_t>(sizeof(u32x4)) / element_bytes(moe.gemm.a_type);  // elements
  const GroupParams rows{static_cast<const u32x4*>(params.a), static_cast<u32x4*>(moe.grouped), params.sorted_token_ids,
                         params.num_tokens_padded, params.m, params.k / chunk, params.lda / chunk, params.top_k};
  params.a = moe.grouped;
  params.lda = params.k;
  return launch_group(call->gpu, rows, stream);
}

BillhookStatus run(const BillhookGemm& p, const BillhookMoeGemm* moe, void* workspace, size_t bytes, cudaStream_t stream) {
  Call call;
  if (const BillhookStatus status = prepare(p, moe, &call)) return status;
  if (const BillhookStatus status = check_strides(p)) return status;
  if (const BillhookStatus status = check_pointers(p, moe)) return status;
  if (const BillhookStatus status = check_room(call, moe, workspace, bytes)) return status;
  call.params.partials = static_cast<u32*>(workspace);
  Activations a{p.m, element_bytes(p.a_type)};
  if (call.kernel->grouped) {
    if (group(&call, *moe, stream) != cudaSuccess) return BILLHOOK_CUDA_ERROR;
    a.rows = call.tiles_m * call.kernel->tile_m;
  }
  const cudaError_t error = launch_gemm(call.gpu, *call.kernel, call.params, a, call.ctas, stream);
  return error == cudaSuccess ? BILLHOOK_OK : BILLHOOK_CUDA_ERROR;
}

BillhookStatus find_name(const BillhookGemm& p, const BillhookMoeGemm* moe, const char** name) {
  if (name == nullptr) return BILLHOOK_NULL_POINTER;
  Gpu gpu;
  const Kernel* kernel;
  if (const BillhookStatus status = choose(p, moe, moe ? moe->block_m : 0, &gpu, &kernel)) return status;
  *name = kernel->name;
  return BILLHOOK_OK;
}

}  // namespace
}  // namespace billhook

const char* billhook_status_string(BillhookStatus status) {
  switch (status) {
    case BILLHOOK_OK: return "success";
    case BILLHOOK_NULL_POINTER: return "a pointer that these types need is null";
    case BILLHOOK_UNEXPECTED_POINTER:
      return "a pointer is given that these types have no use for: pass null (zeros are for u4 and u8 weights, "
             "token_scales and channel_scales for 8-bit activations, global_scales for e2m1f weights with e4m3fn scales)";
    case BILLHOOK_INVALID_SIZE:
      return "m, num_experts and top_k must be at least 1, n and k positive multiples of 16, group_size positive or -1, "
             "num_experts at most 1024";
    case BILLHOOK_INVALID_STRIDE: return "lda and ldd must be at least k and n, and multiples of 16 bytes";
    case BILLHOOK_MISALIGNED:
      return "a, codes, scales, zeros, channel_scales, d, topk_ids, grouped and the workspace must be aligned to 16 bytes, "
             "bias to 8, all others to 4";
    case BILLHOOK_UNSUPPORTED_PROBLEM:
      return "this library holds no kernel for these types, group_size, n, k, num_experts and top_k: emit it for a model "
             "that has them";
    case BILLHOOK_UNSUPPORTED_GPU:
      return "this library holds no kernel for this GPU: emit it for that architecture (--arch)";
    case BILLHOOK_INVALID_BLOCK_M:
      return "this library holds no kernel for blocks of block_m rows: route with what billhook_moe_block_m says";
    case BILLHOOK_WORKSPACE_TOO_SMALL:
      return "the workspace is smaller than billhook_gemm_workspace or billhook_moe_gemm_workspace says; billhook_load "
             "tells what is enough for all calls";
    case BILLHOOK_GROUPED_TOO_SMALL: return "grouped has less room than billhook_moe_grouped_bytes says";
    case BILLHOOK_CUDA_ERROR: return "CUDA refused a call: cudaGetLastError tells which error";
  }
  return "no such status";
}

BillhookStatus billhook_load(size_t* workspace_bytes) {
  if (workspace_bytes == nullptr) return BILLHOOK_NULL_POINTER;
  billhook::Gpu gpu;
  if (billhook::find_gpu(&gpu) != cudaSuccess) return BILLHOOK_CUDA_ERROR;
  if (!billhook::serves(gpu)) return BILLHOOK_UNSUPPORTED_GPU;
  return billhook::load_all(gpu, workspace_bytes) == cudaSuccess ? BILLHOOK_OK : BILLHOOK_CUDA_ERROR;
}

BillhookStatus billhook_gemm_workspace(const BillhookGemm* problem, size_t* bytes) {
  return problem ? billhook::find_workspace(*problem, nullptr, bytes) : BILLHOOK_NULL_POINTER;
}

BillhookStatus billhook_moe_gemm_workspace(const BillhookMoeGemm* problem, size_t* bytes) {
  return problem ? billhook::find_workspace(problem->gemm, problem, bytes) : BILLHOOK_NULL_POINTER;
}

BillhookStatus billhook_moe_grouped_bytes(const BillhookMoeGemm* problem, size_t* bytes) {
  if (problem == nullptr || bytes == nullptr) return BILLHOOK_NULL_POINTER;
  if (problem->block_m < 1) return BILLHOOK_INVALID_BLOCK_M;
  const BillhookGemm& p = problem->gemm;
  billhook::Gpu gpu;
  const billhook::Kernel* kernel;
  if (const BillhookStatus status = billhook::choose(p, problem, problem->block_m, &gpu, &kernel)) return status;
  const int32_t blocks = billhook_route_blocks(p.m * problem->top_k, problem->num_experts, problem->block_m);
  const bool grouped =
      billhook::may_group(problem->block_m, billhook::problem_of(p, problem), gpu.major, gpu.minor);
  *bytes = grouped ? billhook::bytes_of_grouped(p, blocks, problem->block_m) : 0;
  return BILLHOOK_OK;
}

BillhookStatus billhook_clear_workspace(void* workspace, size_t bytes, cudaStream_t stream) {
  if (workspace == nullptr) return BILLHOOK_NULL_POINTER;
  // A slot of all ones is an empty one (billhook/epilogue/store.cuh).
  return cudaMemsetAsync(workspace, 0xff, bytes, stream) == cudaSuccess ? BILLHOOK_OK : BILLHOOK_CUDA_ERROR;
}

BillhookStatus billhook_gemm(const BillhookGemm* problem, void* workspace, size_t bytes, cudaStream_t stream) {
  return problem ? billhook::run(*problem, nullptr, workspace, bytes, stream) : BILLHOOK_NULL_POINTER;
}

BillhookStatus billhook_moe_gemm(const BillhookMoeGemm* problem, void* workspace, size_t bytes, cudaStream_t stream) {
  return problem ? billhook::run(problem->gemm, problem, workspace, bytes, stream) : BILLHOOK_NULL_POINTER;
}

BillhookStatus billhook_moe_block_m(const BillhookMoeGemm* problem, int32_t* block_m) {
  if (problem == nullptr || block_m == nullptr) return BILLHOOK_NULL_POINTER;
  billhook::Gpu gpu;
  const billhook::Kernel* kernel;
  if (const BillhookStatus status = billhook::choose(problem->gemm, problem, 0, &gpu, &kernel)) return status;
  *block_m = kernel->tile_m;
  return BILLHOOK_OK;
}

int32_t billhook_route_blocks(int32_t rows, int32_t num_experts, int32_t block_m) {
  const int64_t partly_empty = rows + static_cast<int64_t>(num_experts) * (block_m - 1);
  return static_cast<int32_t>(std::min<int64_t>(rows, partly_empty / block_m));
}

BillhookStatus billhook_route(const BillhookRoute* routing, cudaStream_t stream) {
  if (!routing || !routing->topk_ids || !routing->sorted_token_ids || !routing->expert_ids || !routing->num_tokens_padded)
    return BILLHOOK_NULL_POINTER;
  BillhookRoute r = *routing;
  if (r.rows < 1 || r.num_experts < 1 || r.num_experts > billhook::kMaxExperts) return BILLHOOK_INVALID_SIZE;
  if (r.block_m < 1) return BILLHOOK_INVALID_BLOCK_M;
  if (!billhook::is_aligned(r.topk_ids, 16)) return BILLHOOK_MISALIGNED;
  billhook::Gpu gpu;
  if (billhook::find_gpu(&gpu) != cudaSuccess) return BILLHOOK_CUDA_ERROR;
  if (!billhook::serves(gpu)) return BILLHOOK_UNSUPPORTED_GPU;
  void* arguments[] = {&r.topk_ids,         &r.rows,       &r.num_experts,      &r.block_m,
                       &r.sorted_token_ids, &r.expert_ids, &r.num_tokens_padded};
  const cudaError_t error = billhook::launch_route(gpu, r.num_experts, arguments, stream);
  return error == cudaSuccess ? BILLHOOK_OK : BILLHOOK_CUDA_ERROR;
}

BillhookStatus billhook_gemm_kernel(const BillhookGemm* problem, const char** name) {
  return problem ? billhook::find_name(*problem, nullptr, name) : BILLHOOK_NULL_POINTER;
}

BillhookStatus billhook_moe_gemm_kernel(const BillhookMoeGemm* problem, const char** name) {
  return problem ? billhook::find_name(problem->gemm, problem, name) : BILLHOOK_NULL_POINTER;
}
