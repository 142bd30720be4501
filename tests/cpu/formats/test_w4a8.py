"""W4A8: products rounded to e4m3 once, scales of which none saturates, words of four neighbours along k."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.dtypes import BF16, U4, U4B8
from billhook.errors import WeightError
from billhook.formats import affine, host
from billhook.formats import pack as order
from billhook.formats.blocks import count_groups
from billhook.formats.stored import Words
from billhook.formats.w4a8 import W4a8, dequantize, fold, quantize, round_weights

SEEDS = st.integers(0, 2**32 - 1)
E4M3 = ml_dtypes.float8_e4m3fn
NUMBERS = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
GRID = np.sort(np.abs(NUMBERS[~np.isnan(NUMBERS)]))


def nearest(value: float) -> float:
    """Return the e4m3 number nearest to a value, by its definition: search, and of two the even one."""
    size = min(abs(value), 448.0)
    below = int(np.searchsorted(GRID, size, side="right")) - 1
    found = [one for one in GRID[below : below + 2] if one >= 0]
    least = min(abs(one - size) for one in found)
    chosen = [one for one in found if abs(one - size) == least]
    even = [one for one in chosen if np.array(one, E4M3).view(np.uint8) % 2 == 0]
    return math.copysign((even or chosen)[0], value)


def test_every_code_and_every_scale() -> None:
    scales = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)[None]
    codes = np.repeat(np.arange(16, dtype=np.uint8)[:, None], scales.shape[1], axis=1)
    got = NUMBERS[round_weights(codes, scales, 128)]
    want = np.vectorize(nearest)((codes.astype(float) - 8) * NUMBERS[scales])
    assert (got == want).all()
    assert got.min() == -448 and got.max() == 448
    channels = np.linspace(-3, 3, scales.shape[1]).astype(np.float32)
    assert (dequantize(W4a8(codes, scales, channels), np.float64) == want * channels.astype(float)).all()


@given(k=st.integers(1, 300), n=st.integers(1, 5), size=st.sampled_from([32, 128]), seed=SEEDS)
def test_groups_and_experts_have_their_own_scales(k: int, n: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (2, k, n), dtype=np.uint8)
    scales = rng.integers(0, 0x7F, (2, -(-k // size), n), dtype=np.uint8)
    channels = rng.standard_normal((2, n)).astype(np.float32)
    got = dequantize(W4a8(codes, scales, channels, size), np.float64)
    for expert, row, column in zip(*(rng.integers(0, extent, 20) for extent in (2, k, n)), strict=True):
        scale = NUMBERS[scales[expert, row // size, column]]
        number = nearest((float(codes[expert, row, column]) - 8) * scale)
        assert got[expert, row, column] == number * float(channels[expert, column])


@given(groups=st.integers(1, 6), n=st.integers(1, 6), exponent=st.integers(-60, 60), seed=SEEDS)
def test_folded_scales_leave_no_product_to_saturate(groups: int, n: int, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scales = rng.standard_normal((groups, n)) * 2.0 ** rng.integers(-8, 1, (groups, n)) * 2.0**exponent
    scales = scales.astype(np.float32)
    folded, channels = fold(scales)
    largest = np.abs(scales).max(axis=0)
    assert (channels == (largest.astype(np.float64) / 56).astype(np.float32)).all()
    numbers = NUMBERS[folded]
    assert np.abs(numbers).max() == 56
    quotient = scales.astype(np.float64) / channels
    assert (numbers == np.vectorize(nearest)(quotient)).all()


def test_channels_of_zeros_stay_zero() -> None:
    scales, channels = fold(np.zeros((3, 2), np.float32))
    assert (scales == 0).all() and (channels == 1).all()
    quantized = quantize(np.zeros((256, 2)))
    assert not dequantize(quantized).any()


@settings(deadline=None)
@given(seed=SEEDS, spread=st.integers(0, 4))
def test_folding_costs_what_the_module_says(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((1024, 32)) * 2.0 ** rng.integers(-spread, 1, (1, 32))).astype(np.float32)
    wide = affine.quantize(weight, U4B8, 128, BF16)
    folded = host.join(host.fold(wide))
    assert isinstance(folded, W4a8) and folded.codes is wide.codes

    def size(values: np.ndarray) -> float:
        return float(np.sqrt((values.astype(np.float64) ** 2).mean()))

    exact = affine.dequantize(wide, np.float64)
    assert 0.025 < size(dequantize(folded, np.float64) - exact) / size(weight) < 0.04
    direct = size(dequantize(quantize(weight), np.float64) - weight) / size(weight)
    assert direct < size(dequantize(folded, np.float64) - weight) / size(weight) < 0.13


@pytest.mark.parametrize("k", [64, 80, 144])
def test_every_nibble_lies_where_the_table_says(k: int) -> None:
    n = 80
    codes = np.random.default_rng(7).integers(0, 16, (k, n), dtype=np.uint8)
    scales = np.full((count_groups(k, 128), n), 0x38, np.uint8)
    packed = host.pack(W4a8(codes, scales, np.ones(n, np.float32))).codes
    rows = np.full((128, 64 * -(-k // 64)), 8, np.uint8)
    rows[:n, :k] = codes.T
    for strip, block, i, lane, j in np.ndindex(*packed.shape):
        g, t = divmod(lane, 4)
        word = int(packed[strip, block, i, lane, j])
        for h, c in np.ndindex(2, 4):
            row, column = 64 * strip + 16 * i + g + 8 * h, 64 * block + 16 * j + 4 * t + c
            assert word >> 4 * (4 * h + c) & 15 == rows[row, column]


@given(experts=st.integers(0, 2), k=st.integers(1, 9), n=st.integers(1, 5), seed=SEEDS)
def test_codes_survive_their_order(experts: int, k: int, n: int, seed: int) -> None:
    shape = (experts, 16 * k, 16 * n) if experts else (16 * k, 16 * n)
    codes = np.random.default_rng(seed).integers(0, 16, shape, dtype=np.uint8)
    assert (order.reorder_folded(order.order_folded(codes)) == codes).all()


def test_words_of_checkpoints_are_folded_unread() -> None:
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (16, 32)).astype(np.int32)
    held = Words(words, "gptq", 4)
    scales = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float16)
    folded = host.fold(host.Parts("u4b8", held, scales, None, None, 128))
    assert folded.codes is held
    assert (host.unpack(host.pack(folded)).codes == held.read()).all()


def test_what_cannot_be_folded_is_refused() -> None:
    weight = np.random.default_rng(0).standard_normal((128, 32))
    for value, words in (
        (affine.quantize(weight, U4, 128), "got u4, group_size 128"),
        (affine.quantize(weight, U4B8, 64), "got u4b8, group_size 64"),
        (affine.quantize(weight, U4B8, -1), "group_size -1"),
        (host.quantize(weight, "u8b128"), "got u8b128"),
    ):
        with pytest.raises(WeightError, match=words):
            host.fold(value)
    with pytest.raises(WeightError, match="finite"):
        fold(np.array([[np.inf]], np.float32))


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales, channels = np.zeros((256, 3), np.uint8), np.zeros((2, 3), np.uint8), np.ones(3, np.float32)
    W4a8(codes, scales, channels)
    for parts, words in (
        ((codes + np.uint8(16), scales, channels), "0 to 15"),
        ((codes, scales[:1], channels), r"\(2, 3\)"),
        ((codes, scales.astype(np.float32), channels), "e4m3fn codes"),
        ((codes, scales + np.uint8(0xFF), channels), "NaN"),
        ((codes, scales, channels[:2]), r"channel_scales must be float32 \(3,\)"),
        ((codes, scales, channels.astype(np.float64)), "float64"),
        ((codes, scales, channels * np.float32(np.inf)), "finite"),
    ):
        with pytest.raises(WeightError, match=words):
            W4a8(*parts)
    whole = host.split(W4a8(codes[:, :1].repeat(16, 1), scales[:, :1].repeat(16, 1), channels[:1].repeat(16)))
    with pytest.raises(WeightError, match="w4a8 weights need channel_scales"):
        host.join(whole._replace(channel_scales=None))
    with pytest.raises(WeightError, match="u4b8 weights have no channel_scales"):
        host.join(whole._replace(format="u4b8", scales=np.ones((2, 16), np.float32)))
    with pytest.raises(WeightError, match="multiples of 16"):
        host.pack(W4a8(codes, scales, channels))
