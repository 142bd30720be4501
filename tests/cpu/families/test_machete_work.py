"""What a Machete kernel does for a dense problem; `kernels/test_waves.py` compares it with the kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook import families
from billhook.arch import parse
from billhook.config import GemmTypes, KernelConfig, Tile
from billhook.dtypes import BF16, E4M3FN, U4B8

WIDE = GemmTypes(BF16, U4B8, BF16, BF16)
W4A8 = GemmTypes(E4M3FN, U4B8, E4M3FN, BF16)
KERNEL = KernelConfig("machete", WIDE, 128, Tile(128, 128, 128, 4), indexed=False, arch=parse("9.0a"))
HALVED = replace(KERNEL, tile=Tile(256, 128, 64, 5))


def test_marlin_tells_no_work() -> None:
    assert families.tells_work("machete")
    assert not families.tells_work("marlin")


def test_full_waves_take_the_columns_of_their_tiles() -> None:
    assert families.work(KERNEL, 256, 66 * 128, 4096) == (4096, 1)
    assert families.work(KERNEL, 256, 132 * 128, 4096) == (8192, 2)
    assert families.work(KERNEL, 256, 132 * 128 - 100, 4000) == (
        8192,
        2,
    )  # parts of tiles and stages are whole
    assert families.work(KERNEL, 256, 66 * 128, 4096, multiprocessors=66) == (8192, 2)


def test_workers_share_what_would_leave_them_idle() -> None:
    few = families.work(KERNEL, 128, 33 * 128, 4096)
    assert few.waves == 1
    # four workers a tile: a quarter of it, a part, what three workers more cost, and of the slower line
    assert few.columns == pytest.approx(4096 / 4 + 1300 + 3 * 256 + 4096 / 4 / 16)


def test_the_widest_tile_is_cut_in_two_at_the_end_of_m() -> None:
    below = families.work(HALVED, 128, 132 * 128, 4096)
    assert below.columns == 4096 / 2 + 380
    assert families.work(HALVED, 129, 132 * 128, 4096).columns == 4096
    narrow = replace(HALVED, types=W4A8, tile=Tile(256, 128, 128, 4))
    assert families.work(narrow, 128, 132 * 128, 4096).columns == 4096 / 2 + 800
    whole = replace(HALVED, tile=replace(HALVED.tile, stages=2))
    assert families.work(whole, 128, 132 * 128, 4096).columns == 4096
    cluster = replace(HALVED, tile=replace(HALVED.tile, cluster=2))
    assert families.work(cluster, 128, 132 * 128, 4096).columns == 4096 / 2 + 380


def test_a_cluster_is_one_worker_of_a_wider_tile() -> None:
    cluster = replace(KERNEL, tile=replace(KERNEL.tile, cluster=2))
    assert families.work(cluster, 128, 132 * 128, 4096) == (4096, 1)
    assert families.work(cluster, 128, 133 * 128, 4096).waves == 2


@given(
    st.sampled_from([KERNEL, HALVED, replace(KERNEL, tile=Tile(48, 128, 256, 4))]),
    st.integers(1, 5000),
    st.integers(1, 400),
    st.integers(1, 150),
)
def test_work_is_the_same_up_to_the_next_step(config: KernelConfig, m: int, strips: int, blocks: int) -> None:
    step = families.work_step(config)
    assert step == (128 if config == HALVED else config.tile.tile_m)
    upper = -(-m // step) * step
    assert families.work(config, m, 64 * strips, 64 * blocks) == families.work(
        config, upper, 64 * strips, 64 * blocks
    )
