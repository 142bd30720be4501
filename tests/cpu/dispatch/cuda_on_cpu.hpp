// Stands in for CUDA C++, so that kernels whose threads meet once, at one __syncthreads, run on the CPU unchanged: every
// thread of a CTA first runs up to there, then all of them run again to the end. What they do before must bear repeating.
#pragma once
#include <cstdint>
#include <initializer_list>

#define __CUDA_ARCH__ 800
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Index { int x; };

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline Index threadIdx, blockIdx;

namespace cpu {
struct Met {};
struct Misaligned {};
inline bool first_half;

template <class Kernel>
const char* launch(int ctas, int threads, Kernel kernel) {
  try {
    for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x)
      for (bool half : {true, false})
        for (first_half = half, threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) try {
            kernel();
          } catch (Met) {
          }
  } catch (Misaligned) {
    return "a misaligned address";
  }
  return nullptr;
}
}  // namespace cpu

inline void __syncthreads() {
  if (cpu::first_half) throw cpu::Met{};
}

template <class T>
T __ldg(const T* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof(T) != 0) throw cpu::Misaligned{};
  return *at;
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
