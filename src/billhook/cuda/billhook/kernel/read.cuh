// A kernel that only reads: how fast this GPU can bring `count` 16-byte words into registers. SM80+.
//
// Measured beside GEMM kernels as the floor that no kernel with as many bytes of weights can beat. Eight independent
// loads per thread are in flight; like the weights of a GEMM, what is read does not depend on the kernel before, so on
// SM90+ reading begins before that one has ended. The XOR of all words proves that every byte was read.
#pragma once
#include "billhook/numeric/types.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook::read {

constexpr i32 kThreads = 256;
constexpr i32 kInFlight = 8;

__device__ __forceinline__ u32x4 load_streaming(const u32x4* from) {
  u32x4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

}  // namespace billhook::read

// warp_xor: one word per warp of the grid, the XOR of what the warp read.
extern "C" __global__ void __launch_bounds__(256)
    read_words(const billhook::u32x4* words, billhook::i64 count, billhook::u32* warp_xor) {
  using namespace billhook;
  using namespace billhook::read;
  ptx::launch_dependents();

  const i64 stride = static_cast<i64>(gridDim.x) * kThreads;
  i64 at = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  u32 all = 0;
  for (; at + (kInFlight - 1) * stride < count; at += kInFlight * stride) {
    u32x4 v[kInFlight];
#pragma unroll
    for (i32 i = 0; i < kInFlight; ++i) v[i] = load_streaming(words + at + i * stride);
#pragma unroll
    for (i32 i = 0; i < kInFlight; ++i) all ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  for (; at < count; at += stride) {
    const u32x4 v = load_streaming(words + at);
    all ^= v.x ^ v.y ^ v.z ^ v.w;
  }

  all = __reduce_xor_sync(0xffffffff, all);
  ptx::wait_for_prerequisites();
  if (threadIdx.x % 32 == 0) warp_xor[(static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x) / 32] = all;
}
