"""Packing follows docs/layout.md to the nibble, and loses nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.errors import WeightError
from billhook.formats.pack import (
    count_packed_groups,
    pack_codes,
    pack_scales,
    unpack_codes,
    unpack_scales,
)
from billhook.formats.u4b8 import count_groups

NIBBLE_ROWS = (0, 8, 0, 8, 0, 8, 0, 8)  # + g
NIBBLE_COLUMNS = (0, 0, 8, 8, 1, 1, 9, 9)  # + 2 t
SIZES = st.integers(1, 12).map(lambda count: 16 * count)
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(k=SIZES, n=SIZES, experts=st.integers(0, 3), seed=SEEDS)
def test_codes_survive_packing(k: int, n: int, experts: int, seed: int) -> None:
    shape = (experts, k, n) if experts else (k, n)
    codes = np.random.default_rng(seed).integers(0, 16, shape, dtype=np.uint8)
    packed = pack_codes(codes)
    assert packed.shape == (*shape[:-2], -(-n // 64), -(-k // 64), 4, 32, 4)
    assert (unpack_codes(packed, k, n) == codes).all()


@settings(max_examples=40)
@given(k=SIZES, n=SIZES, group=st.sampled_from([-1, 32, 64, 128]), experts=st.integers(0, 3), seed=SEEDS)
def test_scales_survive_packing(k: int, n: int, group: int, experts: int, seed: int) -> None:
    groups = count_groups(k, group)
    shape = (experts, groups, n) if experts else (groups, n)
    scales = np.random.default_rng(seed).standard_normal(shape).astype(np.float16)
    packed = pack_scales(scales, k, group)
    assert packed.shape == (*shape[:-2], -(-n // 64), count_packed_groups(k, group), 64)
    assert (unpack_scales(packed, k, n, group) == scales).all()


def test_every_code_lies_where_the_table_says() -> None:
    k, n = 80, 144
    codes = np.random.default_rng(7).integers(0, 16, (k, n), dtype=np.uint8)
    rows = np.full((192, 128), 8, np.uint8)
    rows[:n, :k] = codes.T
    packed = pack_codes(codes)
    for strip, block, i, lane, j in np.ndindex(*packed.shape):
        g, t = divmod(lane, 4)
        word = int(packed[strip, block, i, lane, j])
        for p in range(8):
            row = 64 * strip + 16 * i + g + NIBBLE_ROWS[p]
            column = 64 * block + 16 * j + 2 * t + NIBBLE_COLUMNS[p]
            assert word >> 4 * p & 15 == rows[row, column]


def test_a_register_of_the_fragment_is_a_shift_and_a_mask() -> None:
    """Register r of mma.m16n8k16's row operand: rows g, g+8 in turn; columns 2t, 2t+1, from r = 2 on + 8."""
    codes = np.random.default_rng(3).integers(0, 16, (64, 64), dtype=np.uint8)
    packed = pack_codes(codes)
    for i, lane, j, r in np.ndindex(4, 32, 4, 4):
        g, t = divmod(lane, 4)
        register = int(packed[0, 0, i, lane, j]) >> 4 * r & 0x000F000F
        row, column = 16 * i + g + 8 * (r % 2), 16 * j + 2 * t + 8 * (r // 2)
        assert register & 0xFFFF == codes[column, row]
        assert register >> 16 == codes[column + 1, row]


def test_every_scale_lies_where_the_table_says() -> None:
    n, groups = 80, 3
    scales = np.random.default_rng(5).standard_normal((groups, n)).astype(np.float16)
    packed = pack_scales(scales, 192, 64)
    for strip, group, g, i, h in np.ndindex(2, groups, 8, 4, 2):
        row = 64 * strip + 16 * i + 8 * h + g
        assert packed[strip, group, 8 * g + 2 * i + h] == (scales[group, row] if row < n else 0)


def test_padding_is_zero_in_codes_and_scales() -> None:
    codes = np.full((16, 16), 15, np.uint8)
    whole = unpack_codes(pack_codes(codes), 64, 64)
    assert (whole[:16, :16] == 15).all()
    whole[:16, :16] = 8
    assert (whole == 8).all()
    # k = 80 has three groups of 32, its two blocks have room for four.
    packed = pack_scales(np.ones((3, 16), np.float16), 80, 32)
    assert packed.shape == (1, 4, 64)
    assert not packed[:, 3].any()


@pytest.mark.parametrize("value", [16, 255])
def test_codes_above_fifteen_are_refused(value: int) -> None:
    codes = np.zeros((16, 16), np.uint8)
    codes[3, 4] = value
    with pytest.raises(WeightError, match=str(value)):
        pack_codes(codes)


def test_arrays_of_the_wrong_shape_or_type_are_refused() -> None:
    with pytest.raises(WeightError, match="int32"):
        pack_codes(np.zeros((16, 16), np.int32))
    with pytest.raises(WeightError, match="at least one expert"):
        pack_codes(np.zeros((0, 16, 16), np.uint8))
    with pytest.raises(WeightError, match="n=32, k=16"):
        unpack_codes(pack_codes(np.zeros((16, 128), np.uint8)), 16, 32)
    with pytest.raises(WeightError, match="has 2 scales"):
        pack_scales(np.zeros((3, 16), np.float16), 64, 32)
    with pytest.raises(WeightError, match="n=128, k=64"):
        unpack_scales(pack_scales(np.zeros((2, 16), np.float16), 64, 32), 64, 128, 32)
