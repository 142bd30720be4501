// Reads problems from standard input and writes which part of which tile each worker computes, as schedule/waves.cuh deals them
// out: a line `worker tile_m tile_n stage count half tile` for each, then `time` and what it took that to last, in columns of k, and an
// empty line behind each problem.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#define private public  // to ask again what a choice costs
#define __device__
#define __forceinline__ inline
using std::max;
using std::min;
inline float __fdividef(float a, float b) { return a / b; }
#include "billhook/schedule/waves.cuh"

using namespace billhook;

template <i32 tile_m_, i32 tile_k_, bool halves_, bool narrow_>
struct Config {
  static constexpr i32 tile_m = tile_m_, tile_k = tile_k_;
  static constexpr bool halves = halves_, narrow = narrow_;
};

template <class Tiles>
void list(Tiles walk, i32 worker, bool half) {
  for (Segment s; walk.next(s);)
    std::printf("%d %d %d %d %d %d %d\n", worker, s.tile_m, s.tile_n, s.stage, s.count, half, s.tile);
}

// What the tiles and halves that were chosen take.
template <class C>
float time(const Waves& chosen, bool split) {
  i32 sharing = split;
  while (split && (sharing + 1) * (sharing + 1) * Waves::more_columns(C::tile_m) <= chosen.stages * C::tile_k) ++sharing;
  Waves again = chosen;
  float least = INFINITY;
  again.consider<C>(least, chosen.whole_tiles, chosen.halves, sharing);
  if (again.workers != chosen.workers || again.line_tiles != chosen.line_tiles) std::abort();
  return least;
}

template <class C>
void deal(i32 rows, i32 tiles_n, i32 stages, i32 tile_bytes, bool split, i32 grid) {
  Waves waves;
  for (i32 worker = 0; worker < grid; ++worker) {
    waves.init<C>(rows, tiles_n, stages, tile_bytes, split, grid, worker);
    list(Walk{waves}, worker, false);
    if constexpr (C::halves) list(HalfWalk{waves}, worker, true);
  }
  std::printf("time %.9g\n\n", time<C>(waves, split));
}

int main() {
  i32 kind, rows, tiles_n, stages, tile_bytes, split, grid;
  while (std::scanf("%d %d %d %d %d %d %d", &kind, &rows, &tiles_n, &stages, &tile_bytes, &split, &grid) == 7) {
    if (kind == 0) deal<Config<64, 128, false, false>>(rows, tiles_n, stages, tile_bytes, split, grid);
    if (kind == 1) deal<Config<256, 64, true, false>>(rows, tiles_n, stages, tile_bytes, split, grid);
    if (kind == 2) deal<Config<256, 128, true, true>>(rows, tiles_n, stages, tile_bytes, split, grid);
    if (kind == 3) deal<Config<16, 256, false, true>>(rows, tiles_n, stages, tile_bytes, split, grid);
    if (kind == 4) deal<Config<32, 256, false, false>>(rows, tiles_n, stages, tile_bytes, split, grid);
    if (kind == 5) deal<Config<144, 128, false, false>>(rows, tiles_n, stages, tile_bytes, split, grid);
  }
}
