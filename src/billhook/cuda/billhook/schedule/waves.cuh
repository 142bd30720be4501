// Which part of which output tile a worker (a CTA, or a cluster that works as one) computes, and when.
//
// Whole tiles are dealt out in waves: tile `first + wave * workers + worker`. So all workers are at the same input features at
// the same time and meet in L2; shares of neighbouring tiles, each begun somewhere else, cost a tenth of the rate
// (docs/decisions/machete-kernel.md). What does not fill a wave, with the wave before it, is computed first, by stream-K, where
// that costs less than the workers that a wave leaves idle: the stages of these tiles form one line, and each worker takes an equal
// share of it. Where tiles are few, some workers take none: no more share a tile than make it faster. A tile whose stages fall
// to several workers is summed from their parts in a fixed order, so a result depends on the shape and the grid, not on timing.
//
// Kernels of wide tiles can compute halves of them, of half as many tokens, where that takes less time: of the tiles that do not
// fill a wave, and at the end of m, where half a tile holds the rows that are left. Halves come last, in waves too.
//
// Tiles are numbered in bands of a few along m, whose activations fit in L2 beside the weights that pass by; within a band m
// varies fastest, so that neighbours share weights.
// Source: Osama et al., "Stream-K", PPoPP 2023, section 5.2 (data-parallel and two-tile stream-K).
#pragma once
#include "billhook/numeric/types.cuh"

namespace billhook {

// Some stages of a tile: all of them, or those that fall to a worker.
struct Segment {
  i32 tile_m, tile_n, tile;  // along m in tiles, or in halves
  i32 stage, count;  // the first one, and how many
};

// The same for all threads of a CTA, who keep it in shared memory.
struct Waves {
  // What splitting costs: handing over and adding a part takes as long as multiplying some columns of k, one more part of a tile
  // some more, and the line, whose workers do not meet in L2, runs slower by a part of itself. Fitted to 326 pairs of times, with
  // and without (docs/decisions/machete-kernel.md, "To split or not").
  static constexpr i32 kLineLoss = 16;
  static __device__ __forceinline__ i32 part_columns(i32 tile_m) { return tile_m > 96 ? 1300 : tile_m > 32 ? 780 : 256; }
  static __device__ __forceinline__ i32 more_columns(i32 tile_m) { return tile_m > 32 ? 256 : tile_m > 16 ? 200 : 100; }
  // A half takes half the time of a tile and that of some columns more, which 8-bit ones pass in half the time.
  static constexpr i32 kHalfColumns = 380, kHalfColumns8 = 800;
  static constexpr i32 kBandBytes = 12 << 20;  // of activations

  i32 tiles_m, tiles_n, stages;  // stages of one tile
  i32 band;                      // tiles along m
  i32 grid, workers, worker;     // all workers, those that take tiles or parts of them, and this one
  i32 line_tiles;   // at the beginning, that workers may share
  i32 whole_tiles;  // up to here they are computed whole, or shared
  i32 halves;       // of the tiles from there on, and below the last ones

  // `rows`: of A; `tile_bytes`: activations of a tile along m; `split`: whether workers may share tiles.
  template <class C>
  __device__ __forceinline__ void init(i32 rows, i32 tiles_n_, i32 stages_, i32 tile_bytes, bool split, i32 grid_, i32 worker_) {
    tiles_n = tiles_n_, stages = stages_, grid = grid_, worker = worker_;
    tiles_m = (rows + C::tile_m - 1) / C::tile_m;
    whole_tiles = tiles_m * tiles_n, halves = 0;
    // The time of a tile of w workers, k / w + w more, is least at w^2 = k / more.
    i32 sharing = split;
    while (split && (sharing + 1) * (sharing + 1) * more_columns(C::tile_m) <= stages * C::tile_k) ++sharing;
    float least = deal<C>(sharing);
    if constexpr (C::halves) {
      // Halves at the end of m alone, or of the tiles that do not fill a wave, too.
      const i32 full = rows / (C::tile_m / 2) / 2 + (rows % C::tile_m > C::tile_m / 2), below = (tiles_m - full) * tiles_n;
      const i32 tiles = full * tiles_n, left = tiles % grid;
      if (below > 0) consider<C>(least, tiles, below, sharing);
      if (left > 0) consider<C>(least, tiles - left, below + 2 * left, sharing);
      if (halves > 0) tiles_m = full;
    }
    const i32 bands = min(tiles_m, static_cast<i32>(static_cast<i64>(tiles_m) * tile_bytes / kBandBytes) + 1);
    band = bands > 1 ? (tiles_m + bands - 1) / bands : max(tiles_m, 1);
  }

  // Where a tile is.
  __device__ __forceinline__ void place(Segment& s) const {
    const i32 first = s.tile / (band * tiles_n) * band, rest = s.tile - first * tiles_n;
    const i32 height = min(band, tiles_m - first);
    s.tile_m = first + rest % height;
    s.tile_n = rest / height;
  }

  // Where a worker's share of the line begins, in stages; the first ones have one more.
  __device__ __forceinline__ i32 begin(i32 of_worker) const {
    const i32 units = line_tiles * stages;
    return of_worker * (units / workers) + min(of_worker, units % workers);
  }

  // The worker whose share of the line holds the last stage of a tile.
  __device__ __forceinline__ i32 last_owner(i32 of_tile) const {
    const i32 units = line_tiles * stages, share = units / workers, extra = units % workers;
    const i32 unit = (of_tile + 1) * stages - 1, in_longer = extra * (share + 1);
    return unit < in_longer ? unit / (share + 1) : extra + (unit - in_longer) / share;
  }

 private:
  // Deals out the whole tiles, some of them, if that is faster, shared by workers: `sharing` of them a tile at most, 0: none.
  // Returns the time of it, in columns of k. In float32, since every CTA begins with this.
  template <class C>
  __device__ __forceinline__ float deal(i32 sharing) {
    const i32 tiles = whole_tiles;
    const float k = stages * C::tile_k;
    workers = min(grid, max(tiles, 1) * max(sharing, 1));
    const i32 rest = tiles % workers, on_line = tiles < workers ? tiles : rest + workers;
    const i32 more = tiles < workers ? more_columns(C::tile_m) * (workers - tiles) : 0;  // of all tiles
    const float part = part_columns(C::tile_m) + __fdividef(more, max(tiles, 1));
    // A wave that is not full leaves the time of (workers - rest) tiles unused.
    const float cost = workers * part + on_line * k / kLineLoss;
    const bool pays = sharing > 0 && rest > 0 && (workers - rest) * k > cost;
    line_tiles = pays ? on_line : 0;
    return __fdividef(pays ? tiles * k + cost : (tiles + (rest > 0 ? workers - rest : 0)) * k, workers);
  }

  // Takes these whole tiles and halves if they take less time.
  template <class C>
  __device__ __forceinline__ void consider(float& least, i32 tiles, i32 count, i32 sharing) {
    const Waves before = *this;
    whole_tiles = tiles, halves = count;
    const float half = stages * C::tile_k / 2 + (C::narrow ? kHalfColumns8 : kHalfColumns);
    const float time = deal<C>(sharing) + (count + grid - 1) / grid * half;
    if (time < least)
      least = time;
    else
      *this = before;
  }
};

// The segments of a worker, one after another, but for halves.
struct Walk {
  const Waves& waves;
  i32 at = waves.begin(waves.worker);  // on the line: next stage
  i32 left = waves.worker < waves.workers ? waves.begin(waves.worker + 1) - at : 0;  // stages to come
  i32 tile = waves.line_tiles + waves.worker;                                     // next whole one

  // Steps to the next segment; false if there is none.
  __device__ __forceinline__ bool next(Segment& s) {
    const i32 stages = waves.stages;
    s.tile = tile, s.stage = 0, s.count = stages;
    if (left > 0) {
      s.tile = at / stages;
      s.stage = at % stages;
      s.count = min(left, stages - s.stage);
      at += s.count;
      left -= s.count;
    } else {
      if (tile >= waves.whole_tiles) return false;
      tile += waves.workers;
    }
    waves.place(s);
    return true;
  }
};

// The halves of a worker, whose stages are twice as deep. Neighbours are those of one tile, which share weights.
struct HalfWalk {
  const Waves& waves;
  i32 half = waves.worker;

  __device__ __forceinline__ bool next(Segment& s) {
    if (half >= waves.halves) return false;
    s.tile = waves.whole_tiles + half / 2, s.stage = 0, s.count = (waves.stages + 1) / 2;
    if (s.tile < waves.tiles_m * waves.tiles_n) {
      waves.place(s);
      s.tile_m = s.tile_m * 2 + half % 2;
    } else {
      s.tile_m = waves.tiles_m * 2;
      s.tile_n = half - (waves.tiles_m * waves.tiles_n - waves.whole_tiles) * 2;
    }
    half += waves.grid;
    return true;
  }
};

}  // namespace billhook
