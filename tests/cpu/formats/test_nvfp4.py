"""Quantizing to NVFP4 with its two scales, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.errors import WeightError
from billhook.formats.nvfp4 import Nvfp4, dequantize, quantize

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Every finite number of e4m3fn that is not negative; the index is the code.
E4M3 = np.array(
    [m / 512 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
)[:0x7F]
ONE = 0x38  # 1 in e4m3fn
SEEDS = st.integers(0, 2**32 - 1)


def columns(*blocks: list[float]) -> np.ndarray:
    """Return blocks [16 * blocks, 1], each filled with zeros."""
    return np.concatenate([[*block, *[0.0] * (16 - len(block))] for block in blocks])[:, None]


def test_every_code_and_every_scale() -> None:
    codes = np.arange(16, dtype=np.uint8)[:, None]
    signed = np.concatenate([E2M1, -E2M1])
    for scale, number in enumerate(E4M3):
        weight = Nvfp4(codes, np.array([[scale]], np.uint8), np.array(0.75, np.float32))
        assert dequantize(weight)[:, 0].tolist() == (signed * number * 0.75).tolist()


@given(blocks=st.integers(1, 5), n=st.integers(1, 5), exponent=st.integers(-90, 90), seed=SEEDS)
def test_no_other_number_is_nearer(blocks: int, n: int, exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 2.0 ** rng.integers(-12, 3, (blocks, 1, n))
    weight = (rng.standard_normal((blocks, 16, n)) * spread * 2.0**exponent).reshape(-1, n).astype(np.float32)
    quantized = quantize(weight)
    assert quantized.global_scale == np.float32(np.abs(weight).max().astype(np.float64) / 2688)
    whole = np.float64(quantized.global_scale)
    wanted = np.abs(weight.reshape(blocks, 16, n)).max(axis=1) / (6 * whole)
    chosen = E4M3[quantized.scales]
    assert (abs(chosen - wanted) <= abs(E4M3[:, None, None] - wanted).min(axis=0)).all()
    steps = np.repeat(chosen * whole, 16, axis=0)
    nearest = abs(E2M1[:, None, None] * steps - np.abs(weight)).min(axis=0)
    assert (abs(dequantize(quantized, np.float64) - weight) <= nearest).all()


@given(seed=SEEDS)
def test_weights_of_the_grid_come_back_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (64, 3), dtype=np.uint8)
    codes[::16] = 15  # each block holds -6
    scales = rng.integers(1, 0x7F, (4, 3), dtype=np.uint8)
    scales[0, 0] = 0x7E  # and one the largest scale
    whole = np.asarray(np.float32(2.0 ** rng.integers(-40, 40)))
    quantized = quantize(dequantize(Nvfp4(codes, scales, whole)))
    assert (quantized.codes == codes).all()
    assert (quantized.scales == scales).all()
    assert quantized.global_scale == whole


def test_known_answers() -> None:
    # Largest 2688 = 448 * 6: global scale 1. Second block: 6 / 6 = 1. Third: 6.375 / 6 = 1.0625, a tie:
    # 1, and 6.375 is cut to 6. Fourth: 6.75 / 6 = 1.125 exactly; 1.40625 is 1.25 steps, a tie, and becomes 1.
    weight = columns([-2688, 112], [6, 0.25, 0.75, -5], [6.375], [6.75, 1.40625])
    quantized = quantize(weight)
    assert quantized.global_scale == 1
    assert quantized.scales[:, 0].tolist() == [0x7E, ONE, ONE, ONE + 1]
    assert quantized.codes[[0, 1, 16, 17, 18, 19, 32, 48, 49], 0].tolist() == [15, 0, 7, 0, 2, 14, 7, 7, 2]
    assert dequantize(quantized)[[0, 16, 19, 32, 48, 49], 0].tolist() == [-2688, 6, -4, 6, 6.75, 1.125]


def test_a_block_too_small_beside_the_largest_becomes_zero() -> None:
    # 6 * 2^-10 needs the scale 2^-10, a tie of 0 and 2^-9 (code 1), and becomes 0; any more becomes 2^-9.
    quantized = quantize(columns([2688], [6 * 2.0**-10], [6.01 * 2.0**-10]))
    assert quantized.scales[:, 0].tolist() == [0x7E, 0, 1]
    assert dequantize(quantized)[[0, 16, 32], 0].tolist() == [2688, 0, 3 * 2.0**-9]


@pytest.mark.parametrize("value", [0.0, 2.0**-149, -(2.0**-140)])
def test_zeros_and_denormals_keep_a_positive_global_scale(value: float) -> None:
    quantized = quantize(np.full((16, 2), value))
    assert quantized.global_scale == 2.0**-126
    assert (np.abs(dequantize(quantized, np.float64)) <= 2 * abs(value)).all()


def test_the_largest_weights_of_float32_keep_within_range() -> None:
    largest = float(np.finfo(np.float32).max)
    restored = dequantize(quantize(columns([largest])), np.float64)[0, 0]
    assert abs(restored / largest - 1) < 2.0**-22


def test_a_number_times_both_scales_is_exact_in_float64() -> None:
    whole = np.asarray(np.float32(1 + 2.0**-23))
    weight = Nvfp4(np.full((16, 1), 3, np.uint8), np.array([[ONE + 1]], np.uint8), whole)
    assert (dequantize(weight, np.float64) == 1.5 * 1.125 * (1 + 2.0**-23)).all()


def test_experts_have_their_own_global_scales() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 32, 4)) * np.array([1, 10, 100])[:, None, None]
    whole = quantize(weight)
    assert whole.global_scale.shape == (3,)
    for expert in range(3):
        assert (dequantize(whole)[expert] == dequantize(quantize(weight[expert]))).all()


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (columns([np.nan]), "finite"),
        (columns([-np.inf]), "finite"),
        (np.zeros((24, 2)), "NVFP4 needs k in whole groups of 16 .got k=24.; pad k with zeros to 32"),
        (np.zeros(16), r"\(16,\)"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight: np.ndarray, words: str) -> None:
    with pytest.raises(WeightError, match=words):
        quantize(weight)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales, whole = np.zeros((32, 3), np.uint8), np.zeros((2, 3), np.uint8), np.array(1, np.float32)
    Nvfp4(codes, scales, whole)
    for parts, words in [
        ((codes + np.uint8(16), scales, whole), "0 to 15"),
        ((codes[:24], scales, whole), "k=24"),
        ((codes, scales[:1], whole), r"\(2, 3\)"),
        ((codes, scales + np.uint8(0x7F), whole), "NaN"),
        ((codes, scales + np.uint8(0x80), whole), "negative"),
        ((codes, scales, whole.astype(np.float64)), "float64"),
        ((codes, scales, np.ones(1, np.float32)), r"must be float32 \(\)"),
        ((codes, scales, np.array(0, np.float32)), "positive"),
        ((codes, scales, np.array(np.inf, np.float32)), "finite"),
    ]:
        with pytest.raises(WeightError, match=words):
            Nvfp4(*parts)
