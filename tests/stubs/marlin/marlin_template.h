// The kernel template's definition: only the generated `.cu` files include it, so that linking shows that
// every kernel a selector names is instantiated by one of them.
#pragma once

#include "kernel.h"

namespace MARLIN_NAMESPACE_NAME {

template <vllm::ScalarTypeId a, vllm::ScalarTypeId b, vllm::ScalarTypeId c, vllm::ScalarTypeId s, int threads,
          int thread_m_blocks, int thread_n_blocks, int thread_k_blocks, bool m_block_size_8, int stages,
          int group_blocks, bool is_zp_float>
__global__ void Marlin(MARLIN_KERNEL_PARAMS) {}

}  // namespace MARLIN_NAMESPACE_NAME
