// The Marlin family: warp-level tensor cores (mma.sync), SM75+. Each warp multiplies one 64 x 64 block of a stage; warps side
// by side along k are summed at the end of a tile.
//
// Here is what is fixed at compile time about one kernel, and where things lie in its shared memory; `families/marlin.py`
// computes the same sizes.
#pragma once
#include "billhook/kernel/gemm.cuh"
#include "billhook/mainloop/mma_sync.cuh"

namespace billhook::marlin {

// The type of D beside activations of 8 bits: that of the scales; bf16 beside e8m0fnu, whose range it shares.
template <class Activation, class Scale>
struct OutputOf {
  using Type = Activation;
};
template <class Scale>
struct OutputOf<s8, Scale> {
  using Type = Scale;
};
template <class Scale>
struct OutputOf<e4m3fn, Scale> {
  using Type = Scale;
};
template <>
struct OutputOf<e4m3fn, e8m0fnu> {
  using Type = bf16;
};

// The sums of a tile: as the MMA gives them, if nothing multiplies them before the end.
template <class Activation, bool channel_scales>
struct TileSum : SumOf<Activation> {};
template <class Activation>
struct TileSum<Activation, false> {
  using Type = Accumulator;
};

template <class Activation, class Weight>
constexpr __host__ __device__ float weight_factor() {
  if constexpr (bits<Activation> == 8) return 1 / Narrow<Activation, Weight>::unit;
  return 1;
}

template <class Activation_, class Weight_, class Scale_, i32 tile_m_, i32 tile_n_, i32 tile_k_, i32 stages_,
          i32 group_size_, bool indexed_>
struct Config {
  using Activation = Activation_;
  using Weight = Weight_;
  using Scale = Scale_;  // the type of the output, or of 8 bits
  using Output = typename OutputOf<Activation, Scale>::Type;
  static constexpr bool narrow = bits<Activation> == 8;
  static constexpr i32 tile_m = tile_m_, tile_n = tile_n_, tile_k = tile_k_, stages = stages_;
  static constexpr i32 group_size = group_size_;  // -1: one scale per output channel
  static constexpr bool indexed = indexed_;  // MoE: rows of A are found through sorted_token_ids
  static constexpr i32 expert_rows = tile_m;  // a block of so many is of one expert

  static constexpr i32 strips = tile_n / kStrip, blocks = tile_k / kStrip;
  static constexpr i32 warps = strips * blocks, threads = 32 * warps;
  static constexpr i32 k_parts = blocks;  // warps that split k
  static constexpr i32 columns = tile_m / 8;  // 8-token columns of the MMA
  static constexpr bool channel_scales = group_size == -1;
  using Sum = typename TileSum<Activation, channel_scales>::Type;
  static constexpr float factor = weight_factor<Activation, Weight>();  // of the sums, for what weights are multiplied as

  // Group scales multiply the sums of one group in float32 where a second set of sums fits into the registers; elsewhere
  // they multiply the weights before the MMA, at the price of one rounding to 16 bits per weight.
  // Scaling one MMA's weights costs no more than scaling its sums: groups of 16 never need the latter.
  static constexpr bool scale_sums =
      narrow             ? true
      : group_size == 16 ? false
      : group_size == 32 ? tile_m <= 8
                         : tile_m <= 16 || (tile_m == 32 && warps <= 8 && ptx::kAsyncCopies);

  static constexpr i32 groups_per_stage = channel_scales ? 0 : tile_k > group_size ? tile_k / group_size : 1;
  static constexpr i32 zero_groups = !has_zeros<Weight> ? 0 : channel_scales ? 1 : groups_per_stage;
  static constexpr i32 activation_row = tile_k * bits<Activation> / 8 + 16;  // + 16: ldmatrix then meets every bank once

  // Offsets in a stage.
  static constexpr i32 codes_at = 0;
  static constexpr i32 activations_at = codes_at + warps * block_bytes<Weight>;
  static constexpr i32 scales_at = activations_at + tile_m * activation_row;
  static constexpr i32 zeros_at = scales_at + strips * groups_per_stage * row_bytes<Scale>;
  static constexpr i32 stage_bytes = zeros_at + strips * zero_groups * row_bytes<Output>;
  static __device__ __forceinline__ u32 activation_at(i32 row, i32 chunk) { return row * activation_row + chunk * 16; }

  // Offsets in dynamic shared memory.
  static constexpr i32 scratch_at = stages * stage_bytes;
  static constexpr i32 barriers_at = scratch_at + warps * kScratchBytes;
  static constexpr i32 shared_bytes = barriers_at + 128;

  // Stages in flight while one is computed: all others, for a warp has read a stage when it comes to the next barrier.
  static constexpr i32 ahead = stages - 1;

  // 16 warps an SM hide latency best, where they fit; above 24 tokens the sums of a warp need the registers of two, above 16
  // with zero points beside rows to look up or 8-bit activations, or if those become fp16.
  static constexpr bool crowded = (has_zeros<Weight> && (indexed || narrow)) || widened<Activation>;
  static constexpr i32 resident_warps = tile_m <= (crowded ? 16 : 24) ? 16 : 8;
  static constexpr i32 min_ctas = fitting_ctas(resident_warps > warps ? resident_warps / warps : 1, shared_bytes);

  using Warps = MmaSync<Config>;

  static_assert(tile_m % 8 == 0 && tile_n % kStrip == 0 && tile_k % kStrip == 0, "tile does not divide");
  static_assert(group_size == -1 || group_size == 16 || group_size == 32 || (group_size % kStrip == 0 && group_size <= tile_k), "group");
  static_assert(stages >= 2 && stages <= 8, "stages");
};

using billhook::run;

}  // namespace billhook::marlin
