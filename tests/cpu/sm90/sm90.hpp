// A model of SM90, so that kernels run on the CPU as they are, their PTX translated by ptx_to_cpp.py: each CUDA thread is a
// fiber, and every instruction does what the PTX ISA says of it. Asynchrony is modelled at its worst: a wgmma reads shared
// memory and its sums only when its group is waited for, copies land in any order and at any time after their issue, words
// of a vector that CTAs exchange become visible one by one, and the order of the threads is random. So data that is
// overwritten or read too early gives a wrong result; a wrong count of arrivals or bytes, an address outside an array and a
// deadlock give an error. Not modelled: proxies and memory order (fences do nothing), the fewer bits that sums of e4m3 have,
// and time.
#pragma once
#include "instructions.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
using std::max;
using std::min;

#define threadIdx (cpu::self->index)
#define blockIdx (cpu::self->cta->block)
#define gridDim (cpu::grid)
inline constexpr cpu::Nothing _;

template <class T>
T __shfl_sync(unsigned, T v, int from) {
  T got;
  struct Lane { T v, *got; } mine = {v, &got};
  cpu::together(mine, [from](Lane* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) *lanes[lane]->got = lanes[from]->v;
  });
  return got;
}
inline void __syncwarp() {
  int nothing = 0;
  cpu::together(nothing, [](int* const*) {});
}
inline void __syncthreads() { cpu::meet(cpu::self->cta->meeting, cpu::self->cta->live); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float v) { return cpu::as_bits(v); }
inline float __uint_as_float(unsigned bits) { return cpu::as_float(bits); }
inline float __int_as_float(int bits) { return cpu::as_float(bits); }
inline unsigned long long __cvta_generic_to_shared(const void* at) {
  return static_cast<const char*>(at) - cpu::self->cta->shared + cpu::kBase;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}
