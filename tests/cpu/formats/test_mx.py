"""Quantizing to MXFP4 and MXFP8 by the rules of the specification, and back."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.dtypes import E2M1F, E4M3FN, F16, DType
from billhook.errors import WeightError
from billhook.formats.mx import Mx, dequantize, quantize

NUMBERS = {
    E2M1F: [Fraction(x) for x in (0, 0.5, 1, 1.5, 2, 3, 4, 6)],
    E4M3FN: [Fraction(m, 512) for m in range(8)]
    + [(8 + m) * Fraction(2) ** (e - 10) for e in range(1, 16) for m in range(8)][:-1],
}
LARGEST_EXPONENT = {E2M1F: 2, E4M3FN: 8}
ELEMENTS = st.sampled_from([E2M1F, E4M3FN])
BOTH = pytest.mark.parametrize("element", [E2M1F, E4M3FN], ids=str)
SEEDS = st.integers(0, 2**32 - 1)


def column(*values: float) -> np.ndarray:
    """Return one block [32, 1] that starts with `values` and ends with zeros."""
    return np.array([*values, *[0.0] * (32 - len(values))])[:, None]


@given(element=ELEMENTS, seed=SEEDS)
def test_blocks_follow_the_specification(element: DType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (
        rng.standard_normal((64, 2)) * 2.0 ** rng.integers(-9, 3, (64, 2)) * 2.0 ** rng.integers(-100, 100)
    )
    weight = weight.astype(np.float32)
    quantized = quantize(weight, element)
    restored = dequantize(quantized, np.float64)
    largest = np.abs(weight).reshape(2, 32, 2).max(axis=1)
    powers = 2.0 ** np.arange(-126, 128)
    shared = np.searchsorted(powers, largest, side="right") - 1 - 126 - LARGEST_EXPONENT[element]
    assert (quantized.scales == shared + 127).all()
    grid = np.array(NUMBERS[element], np.float64)[:, None, None] * np.repeat(2.0**shared, 32, axis=0)
    nearest = abs(grid - np.abs(weight)).min(axis=0)
    assert (abs(restored - weight) == nearest).all()
    assert (np.signbit(restored) == np.signbit(weight)).all()


@given(element=ELEMENTS, seed=SEEDS)
def test_weights_of_the_grid_come_back_exactly(element: DType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = len(NUMBERS[element])
    sign = 1 << (element.bits - 1)
    codes = rng.integers(0, top, (96, 5)).astype(np.uint8) | rng.choice(
        np.array([0, sign], np.uint8), (96, 5)
    )
    codes[::32] = top - 1
    scales = rng.integers(0, 240, (3, 5)).astype(np.uint8)
    quantized = quantize(dequantize(Mx(element, codes, scales)), element)
    assert (quantized.codes == codes).all()
    assert (quantized.scales == scales).all()


@BOTH
def test_every_code_and_every_scale(element: DType) -> None:
    numbers = NUMBERS[element]
    codes = np.resize(np.arange(len(numbers), dtype=np.uint8), (128, 1))
    for scale in range(255):
        weights = dequantize(Mx(element, codes, np.full((4, 1), scale, np.uint8)), np.float64)
        power = math.ldexp(1, scale - 127)
        assert weights[:, 0].tolist() == [float(numbers[code]) * power for code in codes[:, 0]]
    every = np.arange(255, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert every.tolist() == [math.ldexp(1, scale - 127) for scale in range(255)]


def test_known_answers_of_mxfp4() -> None:
    # Largest 7.9: exponent 2, scale 2^0; 7.9 is cut to 6; 0.25, 1.25 and 5 are ties; 2.5 goes to 2, 3.5 to 4.
    quantized = quantize(column(7.9, -7.9, 0.25, 0.26, 1.25, 5, 2.5, 3.5, -0.5), E2M1F)
    assert quantized.scales.tolist() == [[127]]
    assert quantized.codes[:9, 0].tolist() == [7, 15, 0, 1, 2, 6, 4, 6, 9]
    # The largest decides alone: 8 doubles the scale, 4 keeps it, just below 4 halves it.
    for largest, scale in [(8, 128), (4, 127), (3.9999998, 126), (1, 125), (2.0**127, 252), (2.0**-126, 0)]:
        assert quantize(column(largest), E2M1F).scales.tolist() == [[scale]]


def test_known_answers_of_mxfp8() -> None:
    # Largest 500: exponent 8, scale 2^0, cut to 448; 17 is a tie of 16 and 18, 19 one of 18 and 20.
    quantized = quantize(column(500, -448, 17, 19, 2.0**-9, 2.0**-10, 3 * 2.0**-10), E4M3FN)
    assert quantized.scales.tolist() == [[127]]
    assert quantized.codes[:7, 0].tolist() == [0x7E, 0xFE, 0x58, 0x5A, 0x01, 0x00, 0x02]


@BOTH
def test_zeros_and_denormals_take_the_smallest_scale(element: DType) -> None:
    assert (dequantize(quantize(np.zeros((32, 2)), element)) == 0).all()
    assert quantize(np.zeros((32, 1)), element).scales.tolist() == [[0]]
    smallest = float(NUMBERS[element][1]) * 2.0**-127
    quantized = quantize(column(smallest, 2.0**-149, -smallest), element)
    assert quantized.scales.tolist() == [[0]]
    assert dequantize(quantized)[:3, 0].tolist() == [smallest, 0, -smallest]


def test_the_largest_weights_of_float32_keep_within_range() -> None:
    largest = float(np.finfo(np.float32).max)
    assert dequantize(quantize(column(largest), E2M1F))[0, 0] == 6 * 2.0**125
    assert dequantize(quantize(column(largest), E4M3FN))[0, 0] == 448 * 2.0**119
    beyond = Mx(E2M1F, np.full((32, 1), 15, np.uint8), np.array([[254]], np.uint8))
    assert (dequantize(beyond) == -np.inf).all()
    assert (dequantize(beyond, np.float64) == -6 * 2.0**127).all()


@BOTH
def test_experts_are_quantized_one_by_one(element: DType) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 64, 4))
    whole = quantize(weight, element)
    for expert in range(3):
        assert (dequantize(whole)[expert] == dequantize(quantize(weight[expert], element))).all()


@pytest.mark.parametrize(
    ("weight", "element", "words"),
    [
        (column(np.nan), E2M1F, "finite"),
        (column(np.inf), E4M3FN, "finite"),
        (np.zeros((40, 2)), E2M1F, "MXFP4 needs k in whole groups of 32 .got k=40.; pad k with zeros to 64"),
        (np.zeros((31, 2)), E4M3FN, "MXFP8 .*k=31"),
        (np.zeros((32, 2)), F16, "f16 is no element type"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight: np.ndarray, element: DType, words: str) -> None:
    with pytest.raises(WeightError, match=words):
        quantize(weight, element)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales = np.zeros((64, 3), np.uint8), np.zeros((2, 3), np.uint8)
    Mx(E2M1F, codes, scales)
    for element, parts, words in [
        (F16, (codes, scales), "f16"),
        (E2M1F, (codes + np.uint8(16), scales), "0 to 15"),
        (E4M3FN, (codes + np.uint8(0xFF), scales), "NaN"),
        (E2M1F, (codes[:48], scales), "k=48"),
        (E2M1F, (codes, scales[:1]), r"\(2, 3\)"),
        (E2M1F, (codes, scales.astype(np.float32)), "float32"),
        (E2M1F, (codes, scales + np.uint8(255)), "code 255"),
    ]:
        with pytest.raises(WeightError, match=words):
            Mx(element, *parts)
