// How sums leave the registers: through a scratch of float rows in shared memory, one row per token.
#pragma once
#include "billhook/mma/mma_sync.cuh"
#include "billhook/problem/layout.cuh"
#include "billhook/ptx/memory.cuh"

namespace billhook {

// Writes one MMA result of 16 output features x 8 tokens; `to`: where feature g of token 2 t goes, lane = 4 g + t.
template <class Sum>
__device__ __forceinline__ void write_result(u32 to, const Sum& sums) {
  ptx::store_shared(to, static_cast<float>(sums.v[0]));
  ptx::store_shared(to + kScratchRow * 4, static_cast<float>(sums.v[1]));
  ptx::store_shared(to + 8 * 4, static_cast<float>(sums.v[2]));
  ptx::store_shared(to + (8 + kScratchRow) * 4, static_cast<float>(sums.v[3]));
}

}  // namespace billhook
