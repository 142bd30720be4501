"""What a kernel of the Machete family does for a dense problem, in units that time is proportional to.

Mirrors `cuda/billhook/schedule/waves.cuh`, where each CTA computes the same, in float32, to decide how tiles
are dealt out; a test compares them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..config import KernelConfig
from .machete import boxes

MULTIPROCESSORS = 132
"""Of an H100 SXM, which times are measured on, and of an H200: of tables if nothing else is asked."""

_LINE_LOSS = 16
_HALF_COLUMNS = {16: 380, 8: 800}  # by bits of activations


class Work(NamedTuple):
    """What the slowest multiprocessor does.

    Args:
        columns: Of k, of a whole tile, to multiply; sharing tiles is counted in them too.
        waves: Of whole tiles, begun.
    """

    columns: float
    waves: int


def step(config: KernelConfig) -> int:
    """Return the rows that work goes by: it is the same from above one multiple of this to the next."""
    return config.tile.tile_m // len(boxes(config))  # the second box is of half a tile


def work(config: KernelConfig, m: int, n: int, k: int, multiprocessors: int = MULTIPROCESSORS) -> Work:
    """Return what a kernel for dense layers does, one CTA on each multiprocessor.

    Args:
        config: The kernel.
        m: Rows of A.
        n: Output features.
        k: Input features.
        multiprocessors: Of the GPU.
    """
    tile = config.tile
    workers = max(multiprocessors // tile.cluster, 1)
    tiles_n = -(-n // (tile.tile_n * tile.cluster))
    tiles_m = -(-m // tile.tile_m)
    columns = -(-k // tile.tile_k) * tile.tile_k
    tiles = tiles_m * tiles_n
    least = _deal(tile.tile_m, columns, tiles, workers)
    if len(boxes(config)) > 1:
        half_m = tile.tile_m // 2
        half = columns / 2 + _HALF_COLUMNS[config.types.a.bits]
        full = m // half_m // 2 + (m % tile.tile_m > half_m)
        below = (tiles_m - full) * tiles_n  # halves at the end of m
        left = full * tiles_n % workers  # tiles that do not fill a wave, in halves too
        for whole, halves in ((full * tiles_n, below), (full * tiles_n - left, below + 2 * left)):
            if halves:
                time = _deal(tile.tile_m, columns, whole, workers) + -(-halves // workers) * half
                least = min(least, time)
    return Work(least, -(-tiles // workers))


def _deal(tile_m: int, columns: int, tiles: int, grid: int) -> float:
    """Return the columns that whole tiles take, shared by workers where that pays."""
    more = _more_columns(tile_m)
    workers = min(grid, max(tiles, 1) * max(math.isqrt(columns // more), 1))
    rest = tiles % workers
    if rest == 0:
        return tiles * columns / workers
    on_line = tiles if tiles < workers else rest + workers
    part = _part_columns(tile_m) + (more * (workers - tiles) / tiles if tiles < workers else 0)
    cost = workers * part + on_line * columns / _LINE_LOSS
    return (tiles * columns + min(cost, (workers - rest) * columns)) / workers


def _part_columns(tile_m: int) -> int:
    return 1300 if tile_m > 96 else 780 if tile_m > 32 else 256


def _more_columns(tile_m: int) -> int:
    return 256 if tile_m > 32 else 200 if tile_m > 16 else 100
