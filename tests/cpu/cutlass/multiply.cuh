#include "billhook/mma/wgmma.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/memory.cuh"

// D = A B for four steps along k: registers of A [step, thread, register], the bytes of B in shared memory, registers of D
// [thread, register].
#define MULTIPLY(T, tokens)                                                                                              \
  using namespace billhook;                                                                                              \
  extern "C" __global__ void multiply_##T(const u32* a, const u32* b, u32* d) {                                          \
    extern __shared__ __align__(1024) char memory[];                                                                     \
    const u32 shared = ptx::shared_address(memory);                                                                      \
    for (i32 i = threadIdx.x; i < tokens * 32; i += 128) ptx::store_shared_u32(shared + i * 4, b[i]);                    \
    ptx::fence_proxy_async();                                                                                            \
    __syncthreads();                                                                                                     \
    Fragment f[4];                                                                                                       \
    SumOf<T>::Type sums[tokens / 8];                                                                                     \
    for (i32 s = 0; s < 4; ++s)                                                                                          \
      for (i32 r = 0; r < 4; ++r) f[s].r[r] = a[(s * 128 + threadIdx.x) * 4 + r];                                        \
    wgmma_fence();                                                                                                       \
    for (i32 s = 0; s < 4; ++s)                                                                                          \
      Wgmma<T, tokens / 8>::run(sums, f[s], wgmma_descriptor(shared) + s * (32 >> 4), s > 0);                              \
    wgmma_commit();                                                                                                      \
    wgmma_wait<0>();                                                                                                     \
    for (i32 i = 0; i < tokens / 2; ++i) d[threadIdx.x * (tokens / 2) + i] = reinterpret_cast<const u32*>(sums)[i];      \
  }
