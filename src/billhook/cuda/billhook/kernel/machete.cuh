// The Machete family: warpgroup-level tensor cores (wgmma), SM90a.
//
// One producer warpgroup keeps a pipeline of stages filled, two to four consumer warpgroups multiply; a pair of barriers per
// stage (`full`, `empty`) is all they exchange. A stage holds, for tile_k input features, the codes and scales of tile_n output
// features and the activations of tile_m tokens. The grid is persistent: each worker, a CTA or a cluster of CTAs side by
// side along n that share their activations, computes its part of the tiles (schedule/waves.cuh).
//
// Here is also what is fixed at compile time about one kernel, and where things lie in its shared memory;
// `families/machete.py` computes the same sizes.
#pragma once
#include "billhook/epilogue/fragments.cuh"
#include "billhook/mainloop/produce.cuh"
#include "billhook/mainloop/wgmma.cuh"
#include "billhook/mainloop/wgmma_narrow.cuh"
#include "billhook/ptx/grid.cuh"
#include "billhook/ptx/warpgroup.cuh"

namespace billhook {

namespace machete {

// Of a type by condition: the standard library is not at hand.
template <bool first, class A, class B>
struct Choose {
  using Type = A;
};
template <class A, class B>
struct Choose<false, A, B> {
  using Type = B;
};

// 8-bit activations: what the sums lack, since weights are multiplied as numbers times a unit; unless scales are part of them.
template <class Activation, class Weight, bool folds>
constexpr __host__ __device__ float weight_factor() {
  if constexpr (bits<Activation> == 8 && !folds) return 1 / Narrow<Activation, Weight>::unit;
  return 1;
}

template <class Activation_, class Weight_, class Scale_, class Output_, i32 tile_m_, i32 tile_n_, i32 tile_k_, i32 stages_,
          i32 cluster_, bool pingpong_, i32 group_size_, bool indexed_, bool grouped_>
struct Config {
  using Activation = Activation_;
  using Weight = Weight_;
  using Scale = Scale_;  // the type of the output, or of 8 bits
  using Output = Output_;
  static constexpr bool narrow = bits<Activation> == 8;
  static constexpr i32 tile_m = tile_m_, tile_n = tile_n_, tile_k = tile_k_, stages = stages_;
  static constexpr i32 cluster = cluster_;        // CTAs along n that share activations
  static constexpr bool pingpong = pingpong_;     // consumers take whole tiles in turns: one stores while the other multiplies
  static constexpr i32 group_size = group_size_;  // -1: one scale per output channel
  static constexpr bool indexed = indexed_;       // MoE: rows are found through sorted_token_ids
  static constexpr bool grouped = grouped_;       // and those of A lie in that order already, block after block
  static constexpr bool gathers = indexed && !grouped;

  // One strip a consumer, so that several hide each other's latency, unless registers are short.
  static constexpr i32 consumer_warpgroups = pingpong || (tile_n == 256 && tile_m > 48) ? 2 : tile_n / kStrip;
  static constexpr i32 team = pingpong ? 1 : consumer_warpgroups;  // consumers that compute a tile together
  static constexpr i32 consumer_threads = 128 * consumer_warpgroups, threads = consumer_threads + 128;
  static constexpr i32 strips = tile_n / kStrip, blocks = tile_k / kStrip;
  static constexpr i32 strips_each = strips / team;      // of a consumer
  static constexpr i32 sums = strips_each * tile_m / 2;  // registers of a consumer
  static constexpr i32 columns = tile_m / 8;  // 8-token columns of the MMA
  static constexpr bool channel_scales = group_size == -1;
  // The last tiles may be of half as many tokens (Half), whose deeper stages are at least two where there are three.
  static constexpr bool halves = tile_m == 256 && stages > 2 && !gathers;
  static constexpr bool shares_tiles = true;       // workers may
  static constexpr i32 expert_rows = tile_m;       // a block of so many is of one expert
  static constexpr bool has_rows = !channel_scales || has_zeros<Weight>;  // of scales or zero points in each stage
  static constexpr bool one_asks = tile_m == 256;  // one producer thread is enough there; others' waiting costs 5 %
  static constexpr i32 askers = !gathers && !one_asks && has_rows ? 2 : 1;  // who arrive when they have asked for a stage
  static constexpr bool scale_sums = false;    // group scales multiply the weights, rounded once to 16 bits
  static constexpr bool folds = narrow && bits<Scale> == 8;               // or are part of weights of 8 bits (w4a8)
  static constexpr bool promotes = narrow && !channel_scales && !folds;  // or, of 8-bit activations, multiply the sums of a group
  using Sum = typename Choose<promotes, Accumulator, typename SumOf<Activation>::Type>::Type;
  static constexpr bool token_scales = narrow;
  static constexpr float factor = weight_factor<Activation, Weight, folds>();  // of the sums, for what weights are multiplied as
  static constexpr i32 groups_per_stage = channel_scales ? 0 : tile_k > group_size ? tile_k / group_size : 1;
  static constexpr i32 zero_groups = !has_zeros<Weight> ? 0 : channel_scales ? 1 : groups_per_stage;

  // Offsets in a stage. Activations come in blocks that wgmma reads: rows of 128 bytes, swizzled, 1024-aligned.
  static constexpr i32 chunk = 128 * 8 / bits<Activation>;  // features of a block of activations
  static constexpr i32 activations_at = 0;
  static constexpr i32 codes_at = tile_m * tile_k * bits<Activation> / 8;
  static constexpr i32 scales_at = codes_at + strips * blocks * block_bytes<Weight>;
  static constexpr i32 zeros_at = scales_at + strips * groups_per_stage * row_bytes<Scale>;
  static constexpr i32 stage_bytes = (zeros_at + strips * zero_groups * row_bytes<Output> + 1023) / 1024 * 1024;

  // Offsets in dynamic shared memory. Each consumer has a scratch for the tokens of a strip, or for half of them, and tables of
  // them: rows of D and weights where these are looked up, and scales.
  static constexpr i32 epilogue_tokens = tile_m > (narrow ? 112 : 144) ? (tile_m / 2 + 15) / 16 * 16 : tile_m;
  static constexpr i32 scratch_bytes = epilogue_tokens * kStrip * 2;
  static constexpr i32 tables = (indexed ? 2 : 0) + (token_scales ? 1 : 0);
  static constexpr i32 scratch_at = stages * stage_bytes;
  static constexpr i32 tables_at = scratch_at + consumer_warpgroups * scratch_bytes;
  static constexpr i32 lookup_at = tables_at + consumer_warpgroups * tables * tile_m * 4;  // the producer's: rows of A
  static constexpr i32 full_at = lookup_at + (gathers ? tile_m * 4 : 0);
  static constexpr i32 empty_at = full_at + 8 * stages;
  static constexpr i32 waves_at = full_at + (halves ? 256 : 128);  // barriers of halves, too
  static constexpr i32 turns_at = waves_at + 48;  // of consumers that take tiles in turns
  static constexpr i32 shared_bytes = waves_at + 64;

  // Accumulators of a thread, those finished at a time, as registers allow, and their bytes in all threads.
  static constexpr i32 quads = strips_each * columns;
  static constexpr i32 batch = tile_m % 32 == 0 && epilogue_tokens % 32 == 0 && sums > 16 && strips_each == 1 && !promotes ? 4 : 2;
  static constexpr i32 batch_bytes = batch * team * 128 * 16;
  // Whether parts of shared tiles come through the stages: where they are small it is faster to read them from memory, as they come.
  static constexpr bool fetches_parts =
      quads >= 12 && sums <= 128 && stages > 2 && !gathers && !pingpong && batch_bytes <= stage_bytes;

  // Small tiles leave room for a CTA of the next kernel, which requests its weights while this one ends.
  static constexpr i32 min_ctas = consumer_warpgroups == 2 && !pingpong && !promotes && sums <= 32 ? fitting_ctas(2, shared_bytes) : 1;

  // A CTA has the registers it is launched with, for each thread; the producer keeps what it needs, more if it keeps track of
  // rows, and gives the rest to the consumers. All come by eights.
  static constexpr i32 registers = 65536 / min_ctas / threads / 8 * 8;
  static constexpr i32 producer_registers = min_ctas == 2 || consumer_warpgroups == 4 ? 64
                                            : !gathers                               ? (has_zeros<Weight> ? 64 : 56)
                                            : consumer_warpgroups == 3               ? 80
                                            : sums > 80                              ? 64
                                                                                     : 88;
  static constexpr i32 consumer_registers =
      (registers * (consumer_warpgroups + 1) - producer_registers) / consumer_warpgroups / 8 * 8;

  static_assert(tile_m % 16 == 0 && tile_m / cluster % 8 == 0, "tile_m");
  static_assert(tile_n % (kStrip * team) == 0 && tile_k % kStrip == 0, "tile does not divide");
  static_assert(group_size == -1 || group_size == 16 || group_size == 32 || group_size % kStrip == 0, "group");
  static_assert(sums <= (consumer_warpgroups == 3 ? 64 : pingpong ? 96 : 144), "more sums than registers");
  static_assert(sizeof(Waves) <= 48, "waves");
  static_assert(stages >= 2 && stages <= 8, "stages");
  static_assert(!gathers || cluster == 1, "rows that are looked up are not shared");
  static_assert(tile_k % chunk == 0, "tile_k");
  static_assert(!narrow || !gathers, "8-bit rows are not gathered");
  static_assert(!promotes || (group_size == 128 && tile_n == 128 && sums <= 48), "groups are as deep as a block of 8-bit activations");
  static_assert(!folds || (group_size > 0 && group_size % kStrip == 0), "a block has the scales of one group");
  static_assert(indexed || !grouped, "only the rows of MoE are grouped");
};

template <class C, i32 stages>
using HalfConfig = Config<typename C::Activation, typename C::Weight, typename C::Scale, typename C::Output, C::tile_m / 2, C::tile_n,
                          2 * C::tile_k, stages, C::cluster, false, C::group_size, C::indexed, C::grouped>;

// Tiles of half as many tokens, for whose units stages are twice as deep, in the stages' memory of the whole ones.
template <class C>
struct Half : HalfConfig<C, C::stages * C::stage_bytes / HalfConfig<C, 2>::stage_bytes> {
  static constexpr i32 expert_rows = C::tile_m;
  static constexpr bool halves = false, shares_tiles = false, fetches_parts = false, one_asks = true;
  static constexpr i32 askers = 1;
  static constexpr i32 scratch_at = C::scratch_at, tables_at = C::tables_at;
  static constexpr i32 full_at = C::full_at + 128, empty_at = full_at + 8 * Half::stages;
};

#if __CUDA_ARCH_FEAT_SM90_ALL
template <class C, class Tiles>
__device__ __forceinline__ void consume(const GemmParams& p, const Waves& waves, u32 shared, i32 rank, Tiles walk) {
  using Weights = typename Choose<C::folds, FoldedWeights<C>, NarrowWeights<C>>::Type;
  using Narrow = typename Choose<C::promotes, PromotingConsumer<C>, NarrowConsumer<C, Weights>>::Type;
  typename Choose<C::narrow, Narrow, Consumer<C>>::Type consumer;
  const FragmentEpilogue<C> epilogue{p, waves, shared, rank};
  Segment at;
  i32 slot = 0, before = 0;
  u32 parity = 0;
  // Consumers that take turns: this one begins a tile when the other has come to the last stage of the tile before. No sooner,
  // since a barrier's parity tells one phase from the next, not from the one after.
  const i32 me = C::pingpong ? static_cast<i32>(threadIdx.x / 128) : 0;
  const u32 my_turn = shared + C::turns_at + 8 * me, other_turn = shared + C::turns_at + 8 * (1 - me);
  u32 turn_parity = 1 - me;  // a fresh barrier lets pass who waits for the phase before its first
  const auto skip = [&](i32 slots) {
    slot += slots;
    parity ^= slot / C::stages & 1;
    slot %= C::stages;
  };
  const auto leave_to_other = [&] {
    if (walk.next(at)) skip(at.count);
  };
  if (me > 0) leave_to_other();
  if (!walk.next(at)) return;
  typename FragmentEpilogue<C>::Ahead ahead(p, at);
  for (bool more = true; more;) {
    at.count = ptx::uniform(at.count);  // so are addresses, then, that instructions want in uniform registers
    if constexpr (C::pingpong) {
      ptx::mbarrier_wait(my_turn, turn_parity);
      turn_parity ^= 1;
    }
    for (i32 i = 0; i < at.count; ++i) {
      ptx::mbarrier_wait(shared + C::full_at + 8 * slot, parity);
      if constexpr (C::gathers) ptx::fence_proxy_async();  // cp.async wrote what wgmma reads
      if constexpr (C::pingpong) ptx::mbarrier_arrive(other_turn, i == at.count - 1 && threadIdx.x % 32 == 0);
      consumer.multiply(shared + slot * C::stage_bytes, p.blocks - (at.stage + i) * C::blocks, i > 0,
                        shared + C::empty_at + 8 * before);
      before = slot;
      if (++slot == C::stages) {
        slot = 0;
        parity ^= 1;
      }
    }
    // What comes next is looked up while the last unit is multiplied, unless registers are short.
    const u32 last = shared + C::empty_at + 8 * before;
    if constexpr (C::promotes) consumer.finish(last);
    const Segment done = at;
    const typename FragmentEpilogue<C>::Ahead known = ahead;
    const typename FragmentEpilogue<C>::Factors factors(p, known);
    const typename FragmentEpilogue<C>::Features features = epilogue.first_features(done, known);
    if constexpr (C::pingpong) leave_to_other();
    more = walk.next(at);
    ahead = typename FragmentEpilogue<C>::Ahead(p, at);
    if constexpr (!C::promotes) consumer.finish(last);
    epilogue.store(consumer.sums, done, known, factors, features, slot, parity);
    if constexpr (C::fetches_parts)
      if (done.stage == 0 && done.count < waves.stages)
        skip((waves.last_owner(done.tile) - waves.worker) * (C::quads / C::batch));
  }
}

__device__ __forceinline__ void prefetch(const TensorMaps& maps) {
  ptx::prefetch_tensor_map(&maps.whole);
  ptx::prefetch_tensor_map(&maps.rest);
}

template <class C>
__device__ __forceinline__ void init_stages(u32 shared) {
  for (i32 s = 0; s < C::stages; ++s) {
    ptx::mbarrier_init(shared + C::full_at + 8 * s, C::gathers ? 1 + 128 : C::askers);
    ptx::mbarrier_init(shared + C::empty_at + 8 * s, C::team * 4 * ptx::arrivals_of_warp() * C::cluster);
  }
}

// `maps`: of the rows of a tile, unless they are looked up; `half_maps`: of those of half a tile, where there are such.
template <class C>
__device__ __forceinline__ void run(const GemmParams& p, const TensorMaps* maps = nullptr, const TensorMaps* half_maps = nullptr) {
  extern __shared__ __align__(1024) char memory[];
  const u32 shared = ptx::shared_address(memory);
  const i32 rank = static_cast<i32>(blockIdx.x) % C::cluster;  // %cluster_ctarank is in no uniform register, as operands of copies must be

  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    if constexpr (!C::gathers) prefetch(*maps);
    init_stages<C>(shared);
    if constexpr (C::halves) {
      prefetch(*half_maps);
      init_stages<Half<C>>(shared);
    }
    for (i32 turn = 0; C::pingpong && turn < 2; ++turn) ptx::mbarrier_init(shared + C::turns_at + 8 * turn, 4);
    ptx::fence_barrier_init();
  }
  if constexpr (C::indexed) ptx::wait_for_prerequisites();  // which experts to load is not known before
  Waves& waves = *reinterpret_cast<Waves*>(memory + C::waves_at);
  if (threadIdx.x == 32) {  // while the first warp sees to the barriers
    const i32 rows = C::indexed ? *p.num_tokens_padded : p.m;
    constexpr i32 worker_strips = C::strips * C::cluster;
    const i32 workers = gridDim.x / C::cluster;
    Waves dealt{};
    dealt.init<C>(rows, (p.strips + worker_strips - 1) / worker_strips, (p.blocks + C::blocks - 1) / C::blocks,
                  C::tile_m * p.k * (bits<typename C::Activation> / 8), p.split_k, workers,
                  workers - 1 - static_cast<i32>(blockIdx.x) / C::cluster);
    waves = dealt;
  }
  if constexpr (C::cluster > 1)
    ptx::cluster_sync();
  else
    __syncthreads();

  if (threadIdx.x >= C::consumer_threads) {
    ptx::give_up_registers<C::producer_registers>();
    const i32 thread = static_cast<i32>(threadIdx.x) - C::consumer_threads, warp = ptx::uniform(thread / 32);
    // Operands of copies are uniform registers: the compiler computes in them only what whole warps do, or all that is left of them.
    if (!C::gathers && (thread % 32 != 0 || warp >= (C::one_asks ? 1 : 3))) return;
    Producer<C> producer{p, waves, maps, shared, rank, thread, warp};
    producer.run(Walk{waves});
    if constexpr (C::halves) {
      producer.drain();
      Producer<Half<C>>{p, waves, half_maps, shared, rank, thread, warp}.run(HalfWalk{waves});
    }
  } else {
    ptx::take_registers<C::consumer_registers>();
    consume<C>(p, waves, shared, rank, Walk{waves});
    if constexpr (C::halves) consume<Half<C>>(p, waves, shared, rank, HalfWalk{waves});
  }
  if constexpr (C::cluster > 1) ptx::cluster_sync();  // others may still write here, or arrive at barriers of this CTA
}
#elif !defined(__CUDA_ARCH__)
template <class C>
__device__ void run(const GemmParams& p, const TensorMaps* maps = nullptr, const TensorMaps* half_maps = nullptr);  // nvcc's pass for the host looks the name up
#endif

}  // namespace machete
}  // namespace billhook
