// Stream-K: the stages of all output tiles form one line, and each CTA takes an equal, contiguous piece of it. A tile
// whose stages fall to several CTAs is summed from their partial results in a fixed order, so a result depends on the
// shape and the grid, not on timing. With split == false pieces begin and end at tiles and nothing is shared.
// Source: Osama et al., "Stream-K", PPoPP 2023.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

struct StreamK {
  i32 tiles_m;          // tiles along m vary fastest: neighbours share their weights
  i32 stages_per_tile;  // steps along k
  i32 unit;             // stages that stay together
  i32 share;            // units of a CTA; the first `extra` CTAs have one more
  i32 extra;

  __device__ __forceinline__ StreamK(i32 tiles_m_, i32 tiles_n, i32 stages_per_tile_, bool split)
      : tiles_m(tiles_m_), stages_per_tile(stages_per_tile_), unit(split ? 1 : stages_per_tile_) {
    const i32 units = tiles_m * tiles_n * (split ? stages_per_tile : 1);
    share = units / static_cast<i32>(gridDim.x);
    extra = units - share * static_cast<i32>(gridDim.x);
  }

  // The first stage of a CTA's piece; the piece ends where the next one's begins.
  __device__ __forceinline__ i32 begin(i32 cta) const { return (cta * share + min(cta, extra)) * unit; }

  // The CTA whose piece holds a stage.
  __device__ __forceinline__ i32 owner(i32 stage) const {
    const i32 index = stage / unit;
    const i32 in_longer = extra * (share + 1);
    return index < in_longer ? index / (share + 1) : extra + (index - in_longer) / share;
  }
};

// A place on the line: an output tile and a stage of it.
struct Position {
  i32 tile_m, tile_n, stage;

  __device__ __forceinline__ Position(const StreamK& line, i32 at) {
    const i32 tile = at / line.stages_per_tile;
    stage = at - tile * line.stages_per_tile;
    tile_n = tile / line.tiles_m;
    tile_m = tile - tile_n * line.tiles_m;
  }

  // Steps one stage forward; true if that enters another tile.
  __device__ __forceinline__ bool advance(const StreamK& line) {
    if (++stage < line.stages_per_tile) return false;
    stage = 0;
    if (++tile_m == line.tiles_m) {
      tile_m = 0;
      ++tile_n;
    }
    return true;
  }
};

}  // namespace billhook
