// The Machete family: warpgroup-level tensor cores (wgmma), SM90a. Each warpgroup multiplies one strip of 64 output features.
//
// Here is what is fixed at compile time about one kernel, and where things lie in its shared memory; `families/machete.py`
// computes the same sizes.
#pragma once
#include "billhook/kernel/gemm.cuh"
#include "billhook/mainloop/wgmma.cuh"

namespace billhook::machete {

template <class Activation_, class Weight_, i32 tile_m_, i32 tile_n_, i32 tile_k_, i32 stages_, i32 group_size_,
          bool indexed_>
struct Config {
  using Activation = Activation_;
  using Weight = Weight_;
  using Scale = Activation_;
  static constexpr i32 tile_m = tile_m_, tile_n = tile_n_, tile_k = tile_k_, stages = stages_;
  static constexpr i32 group_size = group_size_;  // -1: one scale per output channel
  static constexpr bool indexed = indexed_;       // MoE: rows of A are found through sorted_token_ids

  static constexpr i32 strips = tile_n / kStrip, blocks = tile_k / kStrip;
  static constexpr i32 warps = 4 * strips, threads = 32 * warps;
  static constexpr i32 k_parts = 1;           // no warps split k
  static constexpr i32 columns = tile_m / 8;  // 8-token columns of the MMA
  static constexpr bool channel_scales = group_size == -1;
  static constexpr bool scale_sums = false;  // group scales multiply the weights, rounded once to 16 bits
  static constexpr i32 groups_per_stage = channel_scales ? 0 : tile_k > group_size ? tile_k / group_size : 1;

  static constexpr i32 zero_groups = 0;

  // Offsets in a stage. Activations come in blocks of 64 features that wgmma reads: 128-byte rows, swizzled, 1024-aligned.
  static constexpr i32 activations_at = 0;
  static constexpr i32 codes_at = tile_m * tile_k * 2;
  static constexpr i32 scales_at = codes_at + strips * blocks * kBlockBytes;
  static constexpr i32 stage_bytes = (scales_at + strips * groups_per_stage * kScaleBytes + 1023) / 1024 * 1024;
  static __device__ __forceinline__ u32 activation_at(i32 row, i32 chunk) {
    return (chunk / 8 * tile_m + row) * 128 + (chunk % 8 ^ row % 8) * 16;
  }

  // Offsets in dynamic shared memory.
  static constexpr i32 scratch_at = stages * stage_bytes;
  static constexpr i32 barriers_at = scratch_at + strips * kScratchBytes;
  static constexpr i32 shared_bytes = barriers_at + 128;

  // Stages in flight while one is computed: all but that and the one before, which wgmma may still be reading.
  static constexpr i32 ahead = stages - 2;
  static constexpr bool async_reads = true;

  static constexpr i32 resident_warps = tile_m <= 128 ? 16 : 8;
  static constexpr i32 min_ctas = fitting_ctas(resident_warps > warps ? resident_warps / warps : 1, shared_bytes);

#if __CUDA_ARCH_FEAT_SM90_ALL
  using Warps = WarpgroupMma<Config>;
#endif

  static_assert(tile_m % 8 == 0 && tile_n % kStrip == 0 && tile_k % kStrip == 0, "tile does not divide");
  static_assert(group_size == -1 || group_size == 32 || group_size % kStrip == 0, "group");
  static_assert(stages >= 3 && stages <= 8, "stages");
};

using billhook::run;

}  // namespace billhook::machete
