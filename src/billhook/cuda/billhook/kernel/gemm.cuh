// The walk of the Marlin family: quantized weights x activations, dense and MoE.
//
// Each CTA walks its share of the stream-K line. A stage holds, for tile_k input features, the codes and scales of tile_n
// output features and the activations of tile_m tokens; some stages are in flight while one is computed. Weights are the
// MMA's row operand (D^T = B^T A^T): eight tokens fill one MMA, so decoding wastes little. Weights do not depend on the
// kernel before: on SM90+ their first stages are requested before waiting for it.
#pragma once
#include "billhook/epilogue/store.cuh"
#include "billhook/mainloop/load_registers.cuh"
#include "billhook/ptx/grid.cuh"

namespace billhook {

template <class C>
__device__ __forceinline__ void run(const GemmParams& p) {
  extern __shared__ __align__(1024) char memory[];
  const u32 shared = ptx::shared_address(memory);

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
  const StreamK line(tiles_m, (p.strips + C::strips - 1) / C::strips, (p.blocks + C::blocks - 1) / C::blocks,
                     p.split_k);
  const i32 begin = line.begin(blockIdx.x);
  i32 left = line.begin(blockIdx.x + 1) - begin;  // stages to compute
  if (left == 0) return;

  StageLoader<C> loader(p, line, shared, begin);
  constexpr bool weights_first = !C::indexed && ptx::kAsyncCopies;
  if constexpr (weights_first) {
    StageLoader<C> early = loader;
    for (i32 s = 0; s < C::ahead && s < left; ++s) {
      early.load_weights(s);
      early.advance(true);
    }
    ptx::wait_for_prerequisites();
  }
  for (i32 s = 0; s < C::ahead; ++s) {
    if (s < left) {
      if constexpr (!weights_first) loader.load_weights(s);
      loader.load_activations(s);
      loader.advance(s + 1 < left);
      if constexpr (!ptx::kAsyncCopies) loader.land(s);
    }
    ptx::cp_async_commit();
  }

  Epilogue<C> epilogue{p, shared, line};
  epilogue.at = line.position(begin);
  typename C::Warps warps;
  warps.start_tile();

  i32 slot = 0;
  u32 parity = 0;
  while (left > 0) {
    Position& at = epilogue.at;
    for (; left > 0 && at.stage < line.stages; --left, ++at.stage) {
      ptx::cp_async_wait<C::ahead - 1>();
#if __CUDA_ARCH__ >= 900
      ptx::mbarrier_wait(shared + C::barriers_at + 8 * slot, parity);
#endif
      __syncthreads();  // the stage is there for all, and the slot to be filled is free
      if (left > C::ahead) {
        const i32 fill = slot + C::ahead < C::stages ? slot + C::ahead : slot + C::ahead - C::stages;
        loader.load_weights(fill);
        loader.load_activations(fill);
        loader.advance(left > C::ahead + 1);
      }
      ptx::cp_async_commit();

      // A block without an expert has loaded nothing: its warps multiply leftovers that are never stored.
      warps.multiply(p, at, shared + slot * C::stage_bytes);
      if constexpr (!ptx::kAsyncCopies)
        if (left > C::ahead) loader.land(1 - slot);  // of two stages
      if (++slot == C::stages) {
        slot = 0;
        parity ^= 1;
      }
    }
    warps.end_tile();
    epilogue.store(warps);
    warps.start_tile();
    line.next_tile(at);
  }
  epilogue.at = line.position(line.begin(blockIdx.x));
  epilogue.finish_shared();
}

}  // namespace billhook
