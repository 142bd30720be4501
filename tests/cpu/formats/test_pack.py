"""Packing follows docs/layout.md to the nibble and the byte, and loses nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.dtypes import E2M1F, E4M3FN, U4, U4B8, U8, U8B128, DType
from billhook.errors import WeightError
from billhook.formats.blocks import count_groups
from billhook.formats.pack import (
    count_packed_groups,
    pack_codes,
    pack_scales,
    unpack_codes,
    unpack_scales,
)

NIBBLE_ROWS = (0, 8, 0, 8, 0, 8, 0, 8)  # + g
NIBBLE_COLUMNS = (0, 0, 8, 8, 1, 1, 9, 9)  # + 2 t
BYTE_COLUMNS = (0, 8, 1, 9)  # + 2 t
SIZES = st.integers(1, 12).map(lambda count: 16 * count)
SEEDS = st.integers(0, 2**32 - 1)
NIBBLES, BYTES = (U4, U4B8, E2M1F), (U8, U8B128, E4M3FN)


def draw(element: DType, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**element.bits, shape, dtype=np.uint8)


@settings(max_examples=60)
@given(element=st.sampled_from(NIBBLES + BYTES), k=SIZES, n=SIZES, experts=st.integers(0, 3), seed=SEEDS)
def test_codes_survive_packing(element: DType, k: int, n: int, experts: int, seed: int) -> None:
    shape = (experts, k, n) if experts else (k, n)
    codes = draw(element, *shape, seed=seed)
    packed = pack_codes(codes, element)
    block = (4, 32, 4) if element in NIBBLES else (4, 2, 32, 4)
    assert packed.shape == (*shape[:-2], -(-n // 64), -(-k // 64), *block)
    assert (unpack_codes(packed, k, n, element) == codes).all()


@settings(max_examples=60)
@given(
    k=SIZES,
    n=SIZES,
    group=st.sampled_from([-1, 16, 32, 64, 128]),
    experts=st.integers(0, 3),
    dtype=st.sampled_from([np.float16, np.uint8]),
    seed=SEEDS,
)
def test_scales_survive_packing(*, k: int, n: int, group: int, experts: int, dtype: type, seed: int) -> None:
    groups = count_groups(k, group)
    shape = (experts, groups, n) if experts else (groups, n)
    scales = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    packed = pack_scales(scales, k, group)
    assert packed.shape == (*shape[:-2], -(-n // 64), count_packed_groups(k, group), 64)
    assert packed.dtype == dtype
    assert (unpack_scales(packed, k, n, group) == scales).all()


@pytest.mark.parametrize("element", NIBBLES, ids=str)
def test_every_nibble_lies_where_the_table_says(element: DType) -> None:
    k, n = 80, 144
    codes = draw(element, k, n, seed=7)
    rows = np.full((192, 128), element.bias, np.uint8)
    rows[:n, :k] = codes.T
    packed = pack_codes(codes, element)
    for strip, block, i, lane, j in np.ndindex(*packed.shape):
        g, t = divmod(lane, 4)
        word = int(packed[strip, block, i, lane, j])
        for p in range(8):
            row = 64 * strip + 16 * i + g + NIBBLE_ROWS[p]
            column = 64 * block + 16 * j + 2 * t + NIBBLE_COLUMNS[p]
            assert word >> 4 * p & 15 == rows[row, column]


@pytest.mark.parametrize("element", BYTES, ids=str)
def test_every_byte_lies_where_the_table_says(element: DType) -> None:
    k, n = 80, 80
    codes = draw(element, k, n, seed=7)
    rows = np.full((128, 128), element.bias, np.uint8)
    rows[:n, :k] = codes.T
    packed = pack_codes(codes, element)
    for strip, block, i, half, lane, at in np.ndindex(*packed.shape):
        g, t = divmod(lane, 4)
        word = int(packed[strip, block, i, half, lane, at])
        row, j = 64 * strip + 16 * i + 8 * (at % 2) + g, 2 * half + at // 2
        for p in range(4):
            column = 64 * block + 16 * j + 2 * t + BYTE_COLUMNS[p]
            assert word >> 8 * p & 255 == rows[row, column]


def test_a_register_of_the_fragment_is_a_shift_and_a_mask() -> None:
    """Register r of mma.m16n8k16's row operand: rows g, g+8 in turn; columns 2t, 2t+1, from r = 2 on + 8."""
    nibbles, bytes_ = draw(U4B8, 64, 64, seed=3), draw(U8, 64, 64, seed=4)
    small, large = pack_codes(nibbles, U4B8), pack_codes(bytes_, U8)
    for i, lane, j, r in np.ndindex(4, 32, 4, 4):
        g, t = divmod(lane, 4)
        row, column = 16 * i + g + 8 * (r % 2), 16 * j + 2 * t + 8 * (r // 2)
        register = int(small[0, 0, i, lane, j]) >> 4 * r & 0x000F000F
        assert (register & 0xFFFF, register >> 16) == (nibbles[column, row], nibbles[column + 1, row])
        word = int(large[0, 0, i, j // 2, lane, 2 * (j % 2) + r % 2])
        register = word >> 8 * (r // 2) & 0x00FF00FF
        assert (register & 0xFFFF, register >> 16) == (bytes_[column, row], bytes_[column + 1, row])


@pytest.mark.parametrize("dtype", [np.float16, np.uint8])
def test_every_scale_lies_where_the_table_says(dtype: type) -> None:
    n, groups = 80, 3
    scales = np.random.default_rng(5).integers(0, 256, (groups, n)).astype(dtype)
    packed = pack_scales(scales, 192, 64)
    for strip, group, g, i, h in np.ndindex(2, groups, 8, 4, 2):
        row = 64 * strip + 16 * i + 8 * h + g
        assert packed[strip, group, 8 * g + 2 * i + h] == (scales[group, row] if row < n else 0)


@pytest.mark.parametrize(("element", "zero"), [(U4, 0), (U4B8, 8), (E2M1F, 0), (U8, 0), (U8B128, 128)])
def test_padding_is_zero_in_codes_and_scales(element: DType, zero: int) -> None:
    codes = np.full((16, 16), 15, np.uint8)
    whole = unpack_codes(pack_codes(codes, element), 64, 64, element)
    assert (whole[:16, :16] == 15).all()
    whole[:16, :16] = zero
    assert (whole == zero).all()
    # k = 80 has three groups of 32, its two blocks have room for four.
    packed = pack_scales(np.ones((3, 16), np.float16), 80, 32)
    assert packed.shape == (1, 4, 64)
    assert not packed[:, 3].any()


@pytest.mark.parametrize("value", [16, 255])
def test_codes_above_fifteen_are_refused(value: int) -> None:
    codes = np.zeros((16, 16), np.uint8)
    codes[3, 4] = value
    with pytest.raises(WeightError, match=str(value)):
        pack_codes(codes, U4B8)
    assert unpack_codes(pack_codes(codes, U8), 16, 16, U8)[3, 4] == value


def test_arrays_of_the_wrong_shape_or_type_are_refused() -> None:
    with pytest.raises(WeightError, match="int32"):
        pack_codes(np.zeros((16, 16), np.int32), U4)
    with pytest.raises(WeightError, match="at least one expert"):
        pack_codes(np.zeros((0, 16, 16), np.uint8), U4)
    for other, element in ((U4, U4), (U8, U4), (U4, U8)):
        with pytest.raises(WeightError, match="n=32, k=16"):
            unpack_codes(pack_codes(np.zeros((16, 128), np.uint8), other), 16, 32, element)
    with pytest.raises(WeightError, match="has 2 scales"):
        pack_scales(np.zeros((3, 16), np.float16), 64, 32)
    with pytest.raises(WeightError, match="n=128, k=64"):
        unpack_scales(pack_scales(np.zeros((2, 16), np.float16), 64, 32), 64, 128, 32)
