"""Quantizing to fp8 with scales of every extent, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.errors import WeightError
from billhook.formats.blocks import Block
from billhook.formats.fp8 import BLOCK, CHANNEL, GROUP, TENSOR, Fp8, dequantize, quantize

BLOCKS = st.sampled_from([TENSOR, CHANNEL, GROUP, BLOCK, Block(4, 3)])
# Every finite number of e4m3fn that is not negative, from its definition.
GRID = np.array(
    [m / 512 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1]
)


@given(block=BLOCKS, k=st.integers(1, 140), n=st.integers(1, 135), seed=st.integers(0, 2**32 - 1))
def test_no_other_number_is_nearer(block: Block, k: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((k, n)) * 2.0 ** rng.integers(-12, 3, (k, n))).astype(np.float32)
    quantized = quantize(weight, block)
    height, width = (k if block.k == -1 else block.k), (n if block.n == -1 else block.n)
    assert quantized.scales.shape == (-(-k // height), -(-n // width))
    restored = dequantize(quantized, np.float64)
    for i in range(0, k, height):
        for j in range(0, n, width):
            part, scale = weight[i : i + height, j : j + width], quantized.scales[i // height, j // width]
            assert scale == np.float32(np.abs(part).max().astype(np.float64) / 448)
            numbers = GRID * np.float64(scale)
            above = np.searchsorted(numbers, np.abs(part)).clip(1, len(GRID) - 1)
            off = np.minimum(abs(numbers[above] - np.abs(part)), abs(numbers[above - 1] - np.abs(part)))
            assert (np.abs(restored[i : i + height, j : j + width] - part) <= off).all()


@given(block=BLOCKS, seed=st.integers(0, 2**32 - 1))
def test_weights_of_the_grid_come_back_exactly(block: Block, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, n = 130, 131
    codes = rng.integers(0, 0x7F, (k, n), dtype=np.uint8) | rng.choice(np.array([0, 0x80], np.uint8), (k, n))
    height, width = (k if block.k == -1 else block.k), (n if block.n == -1 else block.n)
    codes[::height, ::width] = 0x7E  # the largest number
    scales = (2.0 ** rng.integers(-20, 20, (-(-k // height), -(-n // width)))).astype(np.float32)
    quantized = quantize(dequantize(Fp8(codes, scales, block)), block)
    assert (quantized.codes == codes).all()
    assert (quantized.scales == scales).all()


def test_known_answers() -> None:
    # Largest 896: scale 2. 2.125 and 2.375 are ties of the grid's spacing 1/4 at 2 to 4, times 2.
    weight = np.array([896, -4.25, 4.75, 2.0**-8, 2.0**-9, 2.0**-9 * 1.0001, 3])[:, None]
    quantized = quantize(weight, CHANNEL)
    assert quantized.scales.tolist() == [[2]]
    assert quantized.codes[:, 0].tolist() == [0x7E, 0xC0, 0x42, 0x01, 0x00, 0x01, 0x3C]
    assert dequantize(quantized)[:, 0].tolist() == [896, -4, 5, 2.0**-8, 0, 2.0**-8, 3]


def test_a_number_times_a_scale_is_exact_in_float64_and_rounded_once_in_float32() -> None:
    scale = np.float32(1 + 2.0**-23)
    weight = Fp8(np.array([[0x39]], np.uint8), np.array([[scale]]), TENSOR)  # 1.125
    assert dequantize(weight, np.float64)[0, 0] == 1.125 + 1.125 * 2.0**-23
    assert dequantize(weight)[0, 0] == np.float32(1.125 + 2.0**-23)
    assert dequantize(Fp8(np.array([[0xFE]], np.uint8), np.array([[2e38]], np.float32), TENSOR)) == -np.inf


@pytest.mark.parametrize("value", [0.0, -0.0, 2.0**-149])
def test_zeros_and_weights_below_the_smallest_scale_become_zero(value: float) -> None:
    assert (dequantize(quantize(np.full((5, 3), value), BLOCK)) == 0).all()


def test_denormal_scales_saturate() -> None:
    # 627 / 448 = 1.4 units of 2^-149 is rounded to 1: the largest weight is 627 steps, 448 are kept.
    quantized = quantize([[627 * 2.0**-149], [-448 * 2.0**-149]], TENSOR)
    assert quantized.codes[:, 0].tolist() == [0x7E, 0xFE]


def test_experts_have_their_own_scales() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 20, 6)) * np.array([1, 10, 100])[:, None, None]
    whole = quantize(weight, TENSOR)
    assert whole.scales.shape == (3, 1, 1)
    for expert in range(3):
        assert (dequantize(whole)[expert] == dequantize(quantize(weight[expert], TENSOR))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(WeightError, match="finite"):
        quantize([[value]], TENSOR)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales = np.zeros((256, 130), np.uint8), np.ones((2, 2), np.float32)
    Fp8(codes, scales, BLOCK)
    for parts, words in [
        ((codes, scales.astype(np.float16), BLOCK), "float16"),
        ((codes, scales, GROUP), r"\(2, 130\) for blocks of 128x1 "),
        ((codes, scales, CHANNEL), r"\(1, 130\) for blocks of allx1 "),
        ((codes | np.uint8(0x7F), scales, BLOCK), "NaN"),
        ((codes, scales * np.float32(np.nan), BLOCK), "finite"),
        ((codes, -scales, BLOCK), "negative"),
        ((codes.view(np.int8), scales, BLOCK), "int8"),
        ((codes, scales, Block(0, 1)), "got 0"),
    ]:
        with pytest.raises(WeightError, match=words):
            Fp8(*parts)
