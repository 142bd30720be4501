// What every kernel family knows of the packed weights (docs/layout.md) and of shared memory.
#pragma once
#include "billhook/numeric/elements.cuh"

namespace billhook {

constexpr i32 kStrip = 64;           // packed weights come in blocks of 64 (n) x 64 (k)
constexpr i32 kScratchRow = 64 + 4;  // floats of a row of sums in shared memory; + 4 spreads the rows over the banks
constexpr i32 kScratchBytes = 8 * kScratchRow * 4;  // the sums of one strip and 8 tokens

// Bytes of the codes of one block.
template <class Weight>
constexpr i32 block_bytes = kStrip * kStrip * bits<Weight> / 8;

// Bytes of the scales, or of the zero points, of one strip and one group.
template <class Element>
constexpr i32 row_bytes = kStrip * bits<Element> / 8;

// Shared memory of one SM (CUDA Programming Guide, technical specifications per compute capability).
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr i32 kSharedPerSm = 100 * 1024;
#elif __CUDA_ARCH__ >= 900
constexpr i32 kSharedPerSm = 228 * 1024;
#elif __CUDA_ARCH__ == 750
constexpr i32 kSharedPerSm = 64 * 1024;
#else
constexpr i32 kSharedPerSm = 164 * 1024;
#endif

// CTAs of an SM that the compiler leaves registers for: as many as wanted, if their shared memory fits. The system keeps
// 1 KiB for each.
__host__ __device__ constexpr i32 fitting_ctas(i32 wanted, i32 shared_bytes) {
  const i32 fit = kSharedPerSm / (shared_bytes + 1024);
  return fit < 1 ? 1 : fit < wanted ? fit : wanted;
}

}  // namespace billhook
