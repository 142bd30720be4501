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
  const i32 begin = line.begin(blockIdx.x), count = line.begin(blockIdx.x + 1) - begin;
  if (count == 0) return;

  Loader<C> loader(p, line, shared, begin);
  if constexpr (!C::indexed) {
    Loader<C> early = loader;
    for (i32 s = 0; s < C::stages - 1 && s < count; ++s) {
      early.load_weights();
      early.advance(true);
    }
    ptx::wait_for_prerequisites();
  }
  for (i32 s = 0; s < C::stages - 1; ++s) {
    if (s < count) {
      if constexpr (C::indexed) loader.load_weights();
      loader.load_activations();
      loader.advance(s + 1 < count);
    }
    ptx::cp_async_commit();
  }

  Epilogue<C> epilogue{p, shared, line};
  epilogue.at = line.position(begin);
  epilogue.expert = expert_of<C>(p, epilogue.at.tile_m);
  bool finish_later = false;  // the tile that this CTA begins in the middle of
  Sums<C> sums;
  sums.clear();

  i32 slot = 0;
  u32 parity = 0;
  for (i32 done = 0; done < count; ++done) {
    ptx::cp_async_wait<C::stages - 2>();
#if __CUDA_ARCH__ >= 900
    ptx::mbarrier_wait(shared + C::barriers_at + 8 * slot, parity);
#endif
    __syncthreads();  // the stage is there for all, and the one computed before is free
    if (done + C::stages - 1 < count) {
      loader.load_weights();
      loader.load_activations();
      loader.advance(done + C::stages < count);
    }
    ptx::cp_async_commit();

    const Position& at = epilogue.at;
    const bool exists = at.stage * C::warps_k + warp_k < p.blocks && at.tile_n * C::warps_n + warp_n < p.strips;
    if (exists && epilogue.expert >= 0) multiply_block<C>(sums, shared + slot * C::stage_bytes, warp_n, warp_k);
    if (++slot == C::stages) {
      slot = 0;
      parity ^= 1;
    }

    const bool ends_tile = at.stage + 1 == line.stages;
    if (ends_tile || done + 1 == count) {
      finish_later |= epilogue.store(sums);
      sums.clear();
    }
    line.advance(epilogue.at);
    if (ends_tile && done + 1 < count) epilogue.expert = expert_of<C>(p, at.tile_m);
  }
  if (finish_later) {
    epilogue.at = line.position(begin);
    epilogue.expert = expert_of<C>(p, epilogue.at.tile_m);
    epilogue.finish_shared();
  }
}

}  // namespace billhook::marlin
