// The Marlin family: quantized weights x fp16/bf16 activations on warp-level tensor cores, dense and MoE. SM80+.
//
// Each CTA walks its share of the stream-K line. A stage holds, for tile_k input features, the codes and scales of tile_n output
// features and the activations of tile_m tokens; stages - 1 of them are in flight while one is computed. Each warp
// multiplies one 64 x 64 block of it; warps side by side along k are summed at the end of a tile. Weights are the MMA's row
// operand (D^T = B^T A^T): eight tokens fill one MMA, so decoding wastes little. Weights do not depend on the kernel
// before: on SM90+ their first stages are requested before waiting for it.
#pragma once
#include "billhook/epilogue/marlin_store.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook::marlin {

template <class C>
__device__ __forceinline__ void run(const GemmParams& p) {
  extern __shared__ __align__(128) char memory[];
  const u32 shared = ptx::shared_address(memory);
  const i32 warp = threadIdx.x / 32, warp_n = warp / C::warps_k, warp_k = warp % C::warps_k;

  ptx::launch_dependents();
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    for (i32 s = 0; s < C::stages; ++s) ptx::mbarrier_init(shared + C::barriers_at + 8 * s, 1);
    ptx::fence_barrier_init();
  }
  __syncthreads();
#endif
  if constexpr (C::indexed) ptx::wait_for_prerequisites();  // which experts to load is not known before

  const i32 tiles_m = C::indexed ? *p.num_tokens_padded / C::tile_m : (p.m + C::tile_m - 1) / C::tile_m;
  const StreamK line(tiles_m, (p.strips + C::warps_n - 1) / C::warps_n, (p.blocks + C::warps_k - 1) / C::warps_k,
                     p.split_k);
  const i32 begin = line.begin(blockIdx.x);
  i32 left = line.begin(blockIdx.x + 1) - begin;  // stages to compute
  if (left == 0) return;

  Loader<C> loader(p, line, shared, begin);
  if constexpr (!C::indexed) {
    Loader<C> early = loader;
    for (i32 s = 0; s < C::stages - 1 && s < left; ++s) {
      early.load_weights(s);
      early.advance(true);
    }
    ptx::wait_for_prerequisites();
  }
  for (i32 s = 0; s < C::stages - 1; ++s) {
    if (s < left) {
      if constexpr (C::indexed) loader.load_weights(s);
      loader.load_activations(s);
      loader.advance(s + 1 < left);
    }
    ptx::cp_async_commit();
  }

  Epilogue<C> epilogue{p, shared, line};
  epilogue.at = line.position(begin);
  Sums<C> sums;
  sums.clear();

  i32 slot = 0;
  u32 parity = 0;
  for (; left > 0; --left) {
    ptx::cp_async_wait<C::stages - 2>();
#if __CUDA_ARCH__ >= 900
    ptx::mbarrier_wait(shared + C::barriers_at + 8 * slot, parity);
#endif
    __syncthreads();  // the stage is there for all, and the one computed before is free
    if (left >= C::stages) {
      const i32 free_slot = slot == 0 ? C::stages - 1 : slot - 1;
      loader.load_weights(free_slot);
      loader.load_activations(free_slot);
      loader.advance(left > C::stages);
    }
    ptx::cp_async_commit();

    const Position& at = epilogue.at;
    const bool exists = at.stage * C::warps_k + warp_k < p.blocks && at.tile_n * C::warps_n + warp_n < p.strips;
    if (exists) multiply_block<C>(sums, shared + slot * C::stage_bytes, warp_n, warp_k);
    if (++slot == C::stages) {
      slot = 0;
      parity ^= 1;
    }

    if (at.stage + 1 == line.stages || left == 1) {
      epilogue.store(sums);
      sums.clear();
    }
    line.advance(epilogue.at);
  }
  epilogue.at = line.position(line.begin(blockIdx.x));
  epilogue.finish_shared();
}

}  // namespace billhook::marlin
