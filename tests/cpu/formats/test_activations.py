"""Quantizing activations to 8 bits, per token and with a static scale, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.dtypes import BF16, E4M3FN, S8, DType
from billhook.errors import WeightError
from billhook.formats.activations import (
    Activations,
    dequantize,
    find_scale,
    quantize_dynamic,
    quantize_static,
)

E4M3 = [m / 512 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1]
GRIDS = {
    S8: np.arange(-128.0, 128),
    E4M3FN: np.array(sorted({number * sign for number in E4M3 for sign in (1, -1)})),
}
LARGEST = {S8: 127, E4M3FN: 448}
ELEMENTS = st.sampled_from([S8, E4M3FN])
BOTH = pytest.mark.parametrize("element", [S8, E4M3FN], ids=str)
SEEDS = st.integers(0, 2**32 - 1)


def random_activations(seed: int, tokens: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, k)) * 2.0 ** rng.integers(-20, 20, (tokens, 1))).astype(np.float32)


def find_nearest(activations: np.ndarray, scales: np.ndarray, element: DType) -> np.ndarray:
    """Return the distance of each activation from the nearest number of the grid times its scale."""
    grid = GRIDS[element][:, None, None] * scales.astype(np.float64)
    return abs(grid - activations).min(axis=0)


@given(element=ELEMENTS, tokens=st.integers(1, 6), k=st.integers(1, 50), seed=SEEDS)
def test_each_token_has_its_scale_and_no_other_number_is_nearer(
    element: DType, tokens: int, k: int, seed: int
) -> None:
    activations = random_activations(seed, tokens, k)
    quantized = quantize_dynamic(activations, element)
    largest = np.abs(activations).max(axis=1, keepdims=True).astype(np.float64)
    assert (quantized.scales == (largest / LARGEST[element]).astype(np.float32)).all()
    off = abs(dequantize(quantized, np.float64) - activations)
    assert (off <= find_nearest(activations, quantized.scales, element)).all()


@given(element=ELEMENTS, scale=st.floats(1e-6, 1e6), seed=SEEDS)
def test_a_static_scale_serves_all_tokens_and_saturates(element: DType, scale: float, seed: int) -> None:
    activations = random_activations(seed, 4, 30)
    quantized = quantize_static(activations, scale, element)
    assert quantized.scales.tolist() == [[np.float32(scale)]]
    off = abs(dequantize(quantized, np.float64) - activations)
    assert (off <= find_nearest(activations, quantized.scales, element)).all()


@BOTH
def test_every_code_comes_back(element: DType) -> None:
    dtype = np.int8 if element == S8 else np.uint8
    codes = np.arange(256, dtype=np.uint8).view(dtype)[None]
    if element == E4M3FN:
        codes = codes[(codes & 0x7F) != 0x7F][None]
    weights = dequantize(Activations(element, codes, np.array([[0.25]], np.float32)))
    assert sorted(set(weights[0].tolist())) == (GRIDS[element] / 4).tolist()
    assert (quantize_static(weights, 0.25, element).codes == codes).all()


def test_known_answers_of_s8() -> None:
    # 63.5 / 127 = 0.5; 0.25 and 0.75 are half and one and a half steps: to 0 and 2.
    quantized = quantize_dynamic([[63.5, 0.25, 0.75, -0.75, -63.5], [0, 0, -254, 2, 1]], S8)
    assert quantized.scales.tolist() == [[0.5], [2]]
    assert quantized.codes.tolist() == [[127, 0, 2, -2, -127], [0, 0, -127, 1, 0]]
    assert quantized.codes.dtype == np.int8
    static = quantize_static([[63.5, 63.75, 1e30, -64, -64.5, -1e30]], 0.5, S8)
    assert static.codes.tolist() == [[127, 127, 127, -128, -128, -128]]


def test_known_answers_of_e4m3() -> None:
    # 896 / 448 = 2; 34 is 17 steps, a tie of 16 and 18; 2^-9 is half of the smallest number times 2.
    quantized = quantize_dynamic([[896, -34, 38, 2.0**-9, 2.0**-8]], E4M3FN)
    assert quantized.scales.tolist() == [[2]]
    assert quantized.codes.tolist() == [[0x7E, 0xD8, 0x5A, 0x00, 0x01]]
    assert quantized.codes.dtype == np.uint8
    assert quantize_static([[464, 465, -1e30]], 1, E4M3FN).codes.tolist() == [[0x7E, 0x7E, 0xFE]]


def test_a_quotient_just_off_a_tie_is_not_rounded_onto_it() -> None:
    # 2.5 * scale is 2.5 + 3.75 * 2^-22: the activation lies above it, though its quotient in float32 is 2.5.
    scale, activation = 1 + 3 * 2.0**-23, 2.5 + 4 * 2.0**-22
    assert np.float32(activation) / np.float32(scale) == 2.5
    assert quantize_static([[activation]], scale, S8).codes.tolist() == [[3]]


@BOTH
def test_tokens_of_zeros_and_denormals(element: DType) -> None:
    quantized = quantize_dynamic([[0.0, -0.0], [2.0**-149, 0], [1, 0]], element)
    assert quantized.scales[:2].tolist() == [[0], [0]]
    assert (dequantize(quantized)[:2] == 0).all()
    assert quantize_dynamic(np.zeros((0, 4)), element).codes.shape == (0, 4)


@BOTH
def test_the_scale_of_samples_covers_them(element: DType) -> None:
    largest = LARGEST[element]
    scale = find_scale([[1, -3 * largest], [2, 5]], element)
    assert scale == 3
    assert dequantize(quantize_static([[-3 * largest]], scale, element))[0, 0] == -3 * largest
    for samples in ([[0.0]], np.zeros((0, 3)), [[2.0**-149]]):
        with pytest.raises(WeightError, match="no scale above 0"):
            find_scale(samples, element)


@pytest.mark.parametrize(
    ("activations", "element", "words"),
    [
        ([[np.nan]], S8, "finite"),
        ([[np.inf]], E4M3FN, "finite"),
        ([[1e39]], S8, "finite"),
        ([1.0], S8, r"\(1,\)"),
        (np.zeros((3, 0)), S8, r"\(3, 0\)"),
        ([[1.0]], BF16, "bf16 is no type"),
    ],
)
def test_what_cannot_be_quantized_is_refused(activations: np.ndarray, element: DType, words: str) -> None:
    for call in (
        lambda: quantize_dynamic(activations, element),
        lambda: quantize_static(activations, 1, element),
        lambda: find_scale(activations, element),
    ):
        with pytest.raises(WeightError, match=words):
            call()


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, 1e39, 1e-60])
def test_a_static_scale_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(WeightError, match="static scale"):
        quantize_static([[1.0]], scale, S8)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales = np.zeros((3, 4), np.int8), np.ones((3, 1), np.float32)
    Activations(S8, codes, scales)
    for element, parts, words in [
        (BF16, (codes, scales), "bf16"),
        (E4M3FN, (codes, scales), "uint8"),
        (E4M3FN, (codes.view(np.uint8) + np.uint8(0x7F), scales), "NaN"),
        (S8, (codes[0], scales), r"\(4,\)"),
        (S8, (codes, scales[:2]), r"\(2, 1\)"),
        (S8, (codes, scales.astype(np.float64)), "float64"),
        (S8, (codes, -scales), "negative"),
        (S8, (codes, scales * np.float32(np.inf)), "finite"),
    ]:
        with pytest.raises(WeightError, match=words):
            Activations(element, *parts)
