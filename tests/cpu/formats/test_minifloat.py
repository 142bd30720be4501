"""The codes of e4m3fn and e2m1, against their definitions written out as fractions."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.dtypes import E2M1F, E4M3FN, DType
from billhook.errors import WeightError
from billhook.formats.minifloat import LARGEST, check_numbers, decode, encode

E2M1_NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def e4m3_number(code: int) -> Fraction:
    """Return what an e4m3fn code stands for: sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    sign, exponent, mantissa = (-1) ** (code >> 7), code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * Fraction(mantissa, 8) / 2**6
    return sign * (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 7)


NUMBERS = {
    E4M3FN: [e4m3_number(code) for code in range(0x7F)],
    E2M1F: [Fraction(number) for number in E2M1_NUMBERS],
}
ELEMENTS = pytest.mark.parametrize("element", [E4M3FN, E2M1F], ids=str)


def nearest_code(value: Fraction, element: DType) -> int:
    """Return the code of the nearest number, the even one of two that are as near."""
    sign = 1 << (element.bits - 1) if value < 0 else 0
    distances = [abs(abs(value) - number) for number in NUMBERS[element]]
    best = [code for code, distance in enumerate(distances) if distance == min(distances)]
    return sign | min(best, key=lambda code: code & 1)


@ELEMENTS
def test_every_code_stands_for_its_number_and_comes_back(element: DType) -> None:
    half = 1 << (element.bits - 1)
    for code, number in enumerate(NUMBERS[element]):
        codes = np.array([code, code | half], np.uint8)
        assert decode(codes, element).tolist() == [number, -number]
        assert encode(decode(codes, element), element).tolist() == codes.tolist()
    assert NUMBERS[element][-1] == LARGEST[element]


@ELEMENTS
def test_ties_go_to_the_even_code_and_their_neighbours_to_the_nearest(element: DType) -> None:
    numbers = NUMBERS[element]
    for code, (low, high) in enumerate(pairwise(numbers)):
        tie = float((low + high) / 2)
        values = np.array([tie, -tie, np.nextafter(tie, 0), np.nextafter(tie, 999)])
        half = 1 << (element.bits - 1)
        even = code + (code & 1)
        assert encode(values, element).tolist() == [even, even | half, code, code + 1]


@given(
    element=st.sampled_from([E4M3FN, E2M1F]),
    value=st.floats(-600, 600) | st.floats(-8, 8) | st.floats(-0.02, 0.02) | st.floats(allow_nan=False),
)
def test_no_other_number_is_nearer(element: DType, value: float) -> None:
    if np.isinf(value):
        value = 1e300
    if value == 0:
        value = 0.0
    assert encode(np.array([value]), element)[0] == nearest_code(Fraction(value), element)


def test_nan_is_refused_by_place_and_code() -> None:
    check_numbers(np.array([[0x7E, 0xFE]], np.uint8), "codes")
    for nan in (0x7F, 0xFF):
        with pytest.raises(WeightError, match=rf"codes must not be NaN \(got code {nan:#x} at \(0, 1\)\)"):
            check_numbers(np.array([[0, nan]], np.uint8), "codes")
