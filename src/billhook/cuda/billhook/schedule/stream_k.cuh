// Stream-K: the stages of all output tiles form one line, and each CTA takes an equal, contiguous share of it. Tiles along
// m vary fastest, so that neighbours share their weights. A tile whose stages fall to several CTAs is summed from their
// partial results in a fixed order, so a result depends on the shape and the grid, not on timing. With split == false
// shares begin and end at tiles, and nothing is summed across CTAs.
// Source: Osama et al., "Stream-K", PPoPP 2023.
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

// A place on the line: an output tile and a stage of it.
struct Position {
  i32 tile_m, tile_n, stage;
};

struct StreamK {
  i32 tiles_m, stages;  // stages of one tile
  i32 units;            // of all tiles: stages if tiles may be split, else tiles
  bool split;

  __device__ __forceinline__ StreamK(i32 tiles_m_, i32 tiles_n, i32 stages_, bool split_)
      : tiles_m(tiles_m_), stages(stages_), units(tiles_m_ * tiles_n * (split_ ? stages_ : 1)), split(split_) {}

  // Units of every CTA; the first `extra()` CTAs have one more.
  __device__ __forceinline__ i32 share() const { return units / static_cast<i32>(gridDim.x); }
  __device__ __forceinline__ i32 extra() const { return units % static_cast<i32>(gridDim.x); }

  // The first stage of a CTA's share; the share ends where the next one's begins.
  __device__ __forceinline__ i32 begin(i32 cta) const {
    return (cta * share() + min(cta, extra())) * (split ? 1 : stages);
  }

  // The CTA whose share holds a stage of a tile.
  __device__ __forceinline__ i32 owner(const Position& tile, i32 stage) const {
    const i32 index = tile.tile_n * tiles_m + tile.tile_m, unit = split ? index * stages + stage : index;
    const i32 in_longer = extra() * (share() + 1);
    return unit < in_longer ? unit / (share() + 1) : extra() + (unit - in_longer) / share();
  }

  __device__ __forceinline__ Position position(i32 at) const {
    const i32 tile = at / stages;
    return {tile % tiles_m, tile / tiles_m, at % stages};
  }

  // Steps to the first stage of the next tile.
  __device__ __forceinline__ void next_tile(Position& at) const {
    at.stage = 0;
    if (++at.tile_m == tiles_m) {
      at.tile_m = 0;
      ++at.tile_n;
    }
  }

  // Steps one stage forward; true if that enters another tile.
  __device__ __forceinline__ bool advance(Position& at) const {
    if (++at.stage < stages) return false;
    next_tile(at);
    return true;
  }
};

}  // namespace billhook
