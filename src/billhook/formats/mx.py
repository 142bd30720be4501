"""MXFP4 and MXFP8: 32 small floats along k that share one power of two.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.

Source: OCP Microscaling Formats (MX) Specification 1.0: blocks of 32, shared scale E8M0 (2^(code - 127), NaN
in code 255), elements FP4 E2M1 or FP8 E4M3; section 6.3 for the shared exponent and for saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import E2M1F, E4M3FN, DType
from ..errors import WeightError
from .blocks import Block, check_codes, check_whole_groups, find_largest, read_weights, round_product, spread
from .minifloat import check_numbers, decode, encode

GROUP_SIZE = 32
SCALE_BIAS = 127
SCALE_NAN = 255
_BLOCK = Block(GROUP_SIZE)
_LARGEST_EXPONENT = {E2M1F: 2, E4M3FN: 8}


@dataclass(frozen=True)
class Mx:
    """MX weights, not yet packed.

    Args:
        element: e2m1f (MXFP4) or e4m3fn (MXFP8).
        codes: uint8 [.., k, n], one code each (e2m1f: 0 to 15; e4m3fn: no NaN).
        scales: uint8 [.., k / 32, n], e8m0 codes: 2^(code - 127), 0 to 254.

    Raises:
        WeightError: A wrong type, dtype or shape, k not a multiple of 32, a code out of range or that is NaN.
    """

    element: DType
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        _check_element(self.element)
        check_codes(self.codes, 2**self.element.bits - 1)
        if self.element == E4M3FN:
            check_numbers(self.codes, "codes")
        check_whole_groups(self.codes.shape[-2], GROUP_SIZE, _name(self.element))
        want = _BLOCK.scale_shape(self.codes.shape)
        if self.scales.dtype != np.uint8 or self.scales.shape != want:
            raise WeightError(
                f"scales must be e8m0 codes, uint8 {want} (got {self.scales.dtype} {self.scales.shape})"
            )
        if (self.scales == SCALE_NAN).any():
            raise WeightError(f"scales must not be NaN (got e8m0 code {SCALE_NAN})")


def quantize(weight: npt.ArrayLike, element: DType) -> Mx:
    """Quantize weights, rounding to the nearest number of the type (ties to even).

    A block's scale is the largest power of two not above its largest magnitude, divided by that of the type's
    largest number (4 or 256), and at least 2^-127, which blocks of zeros have. What then exceeds the type's
    largest number becomes it, as the specification has it: up to a quarter (e2m1) or an eighth is cut off.

    Args:
        weight: Finite numbers [.., k, n], taken as float32; k a multiple of 32.
        element: e2m1f (MXFP4) or e4m3fn (MXFP8).

    Raises:
        WeightError: Another type, a weight that is not finite, or k not a multiple of 32.
    """
    _check_element(element)
    values = read_weights(weight)
    *_, k, n = values.shape
    check_whole_groups(k, GROUP_SIZE, _name(element))
    largest = find_largest(values, _BLOCK)
    exponents = np.frexp(largest)[1] - 1 - _LARGEST_EXPONENT[element]
    exponents = np.where(largest == 0, -SCALE_BIAS, np.maximum(exponents, -SCALE_BIAS))
    scales = (exponents + SCALE_BIAS).astype(np.uint8)
    return Mx(element, encode(values / spread(decode_powers(scales), _BLOCK, k, n), element), scales)


def dequantize(weight: Mx, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, and in its range in float32.

    Args:
        weight: Codes and scales.
        dtype: numpy type of the result.
    """
    *_, k, n = weight.codes.shape
    scales = spread(decode_powers(weight.scales), _BLOCK, k, n)
    return round_product(decode(weight.codes, weight.element), scales, dtype)


def decode_powers(scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return what e8m0 codes stand for, 2^-127 to 2^127."""
    powers: npt.NDArray[np.float64] = np.ldexp(1.0, scales.astype(np.int32) - SCALE_BIAS)
    return powers


def _name(element: DType) -> str:
    return f"MXFP{element.bits}"


def _check_element(element: DType) -> None:
    if element not in _LARGEST_EXPONENT:
        known = ", ".join(str(one) for one in _LARGEST_EXPONENT)
        raise WeightError(f"{element} is no element type of MX weights; known: {known}")
