// The Marlin family: quantized weights x fp16/bf16 activations on warp-level tensor cores, dense and MoE. SM80+.
//
// One CTA walks its piece of the stream-K line. Every stage holds, for tile_k input features, the codes and scales of
// tile_n output features and the activations of tile_m tokens; stages - 1 of them are in flight while one is computed.
// Weights are the MMA's row operand (D^T = B^T A^T): eight tokens fill one MMA, so decoding wastes little.
// Weights do not depend on the kernel before: on SM90+ their first stages are requested before waiting for it.
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
  if constexpr (C::indexed) {
    loader.find_rows();
    for (i32 s = 0; s < C::stages - 1; ++s) {
      if (s < count) {
        loader.load_weights();
        loader.load_activations();
        loader.advance();
      }
      ptx::cp_async_commit();
    }
  } else {
    Loader<C> ahead = loader;  // weights alone, before the kernel that makes the activations has ended
    for (i32 s = 0; s < C::stages - 1 && s < count; ++s) {
      ahead.load_weights();
      ahead.slot = ahead.slot + 1;
      ahead.next.advance(line);
    }
    ptx::wait_for_prerequisites();
    loader.find_rows();
    for (i32 s = 0; s < C::stages - 1; ++s) {
      if (s < count) {
        loader.load_activations();
        loader.advance();
      }
      ptx::cp_async_commit();
    }
  }

  Position at(line, begin);
  i32 expert = C::indexed ? p.expert_ids[at.tile_m] : 0;
  Epilogue<C> epilogue{p, line, shared, memory + C::flag_at};
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
      loader.advance();
    }
    ptx::cp_async_commit();

    const bool block_exists = at.stage * C::warps_k + warp_k < p.blocks && at.tile_n * C::warps_n + warp_n < p.strips;
    if (block_exists && expert >= 0) multiply_block<C>(sums, shared + slot * C::stage_bytes, warp_n, warp_k);

    const Position here = at;
    if (at.advance(line) || done + 1 == count) {
      if (expert >= 0) epilogue.store(sums, here, expert, warp_n, warp_k);
      sums.clear();
      if (C::indexed && done + 1 < count) expert = p.expert_ids[at.tile_m];
    }
    if (++slot == C::stages) {
      slot = 0;
      parity ^= 1;
    }
  }
}

}  // namespace billhook::marlin
