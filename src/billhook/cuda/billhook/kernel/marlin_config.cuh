// What is fixed at compile time about one Marlin-family kernel, and where things lie in its shared memory.
// `families/marlin.py` computes the same sizes.
#pragma once
#include "billhook/numeric/dequantize.cuh"

namespace billhook::marlin {

constexpr i32 kStrip = 64;           // packed weights come in blocks of 64 (n) x 64 (k)
constexpr i32 kBlockBytes = 2048;    // 64 x 64 codes of 4 bits
constexpr i32 kScaleBytes = 128;     // the scales of one strip and one group
constexpr i32 kScratchRow = 64 + 4;  // floats; + 4 spreads the rows over the banks

// Shared memory of one SM (CUDA Programming Guide, technical specifications per compute capability).
#if __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr i32 kSharedPerSm = 100 * 1024;
#elif __CUDA_ARCH__ >= 900
constexpr i32 kSharedPerSm = 228 * 1024;
#else
constexpr i32 kSharedPerSm = 164 * 1024;
#endif

template <class Activation_, class Weight_, i32 tile_m_, i32 tile_n_, i32 tile_k_, i32 stages_, i32 group_size_,
          bool indexed_>
struct Config {
  using Activation = Activation_;
  using Weight = Weight_;
  static constexpr i32 tile_m = tile_m_, tile_n = tile_n_, tile_k = tile_k_, stages = stages_;
  static constexpr i32 group_size = group_size_;  // -1: one scale per output channel
  static constexpr bool indexed = indexed_;  // MoE: rows of A are found through sorted_token_ids

  static constexpr i32 warps_n = tile_n / kStrip, warps_k = tile_k / kStrip;
  static constexpr i32 warps = warps_n * warps_k, threads = 32 * warps;
  static constexpr i32 columns = tile_m / 8;  // 8-token columns of the MMA
  static constexpr bool channel_scales = group_size == -1;

  // Group scales multiply the sums of one group in float32 where a second set of sums fits into the registers; elsewhere
  // they multiply the weights before the MMA, at the price of one rounding to 16 bits per weight.
  static constexpr bool scale_sums = group_size == 32 ? tile_m <= 8 : tile_m <= 16 || (tile_m == 32 && warps <= 8);

  static constexpr i32 groups_per_stage = channel_scales ? 0 : tile_k > group_size ? tile_k / group_size : 1;
  static constexpr i32 code_bytes = warps * kBlockBytes;
  static constexpr i32 scale_bytes = warps_n * groups_per_stage * kScaleBytes;
  static constexpr i32 activation_row = tile_k * 2 + 16;  // + 16: ldmatrix then meets every bank once
  static constexpr i32 activation_bytes = tile_m * activation_row;
  static constexpr i32 stage_bytes = code_bytes + activation_bytes + scale_bytes;
  static constexpr i32 scratch_warp_bytes = 8 * kScratchRow * 4;

  // Offsets in dynamic shared memory.
  static constexpr i32 scratch_at = stages * stage_bytes;
  static constexpr i32 barriers_at = scratch_at + warps * scratch_warp_bytes;
  static constexpr i32 shared_bytes = barriers_at + 128;

  // 16 warps an SM hide latency best, where they fit; above 24 tokens the sums of a warp need the registers of two.
  static constexpr i32 resident_warps = tile_m <= 24 ? 16 : 8;
  static constexpr i32 ctas_by_warps = resident_warps > warps ? resident_warps / warps : 1;
  static constexpr i32 ctas_by_memory = kSharedPerSm / (shared_bytes + 1024);  // 1024: kept by the system for each CTA
  static constexpr i32 min_ctas = ctas_by_memory < 1 ? 1 : ctas_by_memory < ctas_by_warps ? ctas_by_memory : ctas_by_warps;

  static_assert(tile_m % 8 == 0 && tile_n % kStrip == 0 && tile_k % kStrip == 0, "tile does not divide");
  static_assert(group_size == -1 || group_size == 32 || (group_size % kStrip == 0 && group_size <= tile_k), "group");
  static_assert(stages >= 2 && stages <= 8, "stages");
};

}  // namespace billhook::marlin
