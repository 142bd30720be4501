"""Integer codes that stand for (code - zero) * scale: u4 and u8 with zero points, u4b8 and u8b128 without.

Zero points are integers, one beside each scale (AWQ); types with a bias (GPTQ) have that one zero throughout.
Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import BF16, F16, F32, U4, U4B8, U8, U8B128, DType
from ..errors import WeightError
from .blocks import Block, check_codes, divide, read_weights, round_product, split, spread
from .elements import numpy_dtype

ELEMENTS = (U4, U4B8, U8, U8B128)
_SCALE_DTYPES = tuple(numpy_dtype(element) for element in (F16, BF16, F32))


@dataclass(frozen=True)
class Affine:
    """Integer weights, not yet packed.

    Args:
        element: u4, u4b8, u8 or u8b128.
        codes: uint8 [.., k, n], 0 to 15 or 0 to 255.
        scales: f16, bf16 or f32 [.., groups, n], finite.
        zeros: uint8 [.., groups, n], in the range of the codes; None for u4b8 and u8b128.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.

    Raises:
        WeightError: A wrong type, dtype or shape, a code out of range, or a scale that is not finite.
    """

    element: DType
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[Any]
    zeros: npt.NDArray[np.uint8] | None
    group_size: int

    def __post_init__(self) -> None:
        check_element(self.element)
        largest = 2**self.element.bits - 1
        check_codes(self.codes, largest)
        want = Block(self.group_size).scale_shape(self.codes.shape)
        if self.scales.dtype not in _SCALE_DTYPES or self.scales.shape != want:
            raise WeightError(
                f"scales must be f16, bf16 or f32 {want} for group_size {self.group_size} "
                f"(got {self.scales.dtype} {self.scales.shape})"
            )
        if not np.isfinite(self.scales.astype(np.float32)).all():
            raise WeightError("scales must be finite; found NaN or infinity")
        if (self.zeros is None) != bool(self.element.bias):
            raise WeightError(
                f"{self.element} has the zero point {self.element.bias} throughout: zeros must be None"
                if self.element.bias
                else f"{self.element} needs zero points, uint8 {want} (got None)"
            )
        if self.zeros is None:
            return
        if self.zeros.dtype != np.uint8 or self.zeros.shape != want:
            raise WeightError(f"zeros must be uint8 {want} (got {self.zeros.dtype} {self.zeros.shape})")
        if self.zeros.size and self.zeros.max() > largest:
            raise WeightError(f"zeros must be 0 to {largest} (got {self.zeros.max()})")


def quantize(weight: npt.ArrayLike, element: DType, group_size: int, scale_dtype: DType = F16) -> Affine:
    """Quantize weights, rounding to nearest (ties to even) within the range of their group.

    With a bias, a group's scale is the smallest that covers it: max(largest / (bias - 1), -smallest / bias).
    With zero points the range, widened to hold zero, is split into 2^bits - 1 steps, and the zero point is
    the code nearest to zero. Scales are rounded to `scale_dtype`; zero points and codes are chosen for the
    rounded scale and saturate.

    Args:
        weight: Finite numbers [.., k, n], taken as float32; the last group may be shorter.
        element: u4, u4b8, u8 or u8b128.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        scale_dtype: f16, bf16 or f32.

    Raises:
        WeightError: Another type, or a weight that is not finite or too large for `scale_dtype`.
    """
    check_element(element)
    values, block, largest = read_weights(weight), Block(group_size), 2**element.bits - 1
    grouped = split(values, block)
    low = np.minimum(grouped.min(axis=(-3, -1)), 0).astype(np.float64)
    high = np.maximum(grouped.max(axis=(-3, -1)), 0).astype(np.float64)
    if element.bias:
        exact = np.maximum(high / (largest - element.bias), -low / element.bias)
    else:
        exact = (high - low) / largest
    with np.errstate(over="ignore"):
        scales = exact.astype(numpy_dtype(scale_dtype))
    rounded = scales.astype(np.float64)
    if not np.isfinite(rounded).all():
        raise WeightError(f"weights up to {np.abs(values).max():g} need a scale beyond {scale_dtype}")
    zeros = None
    if not element.bias:
        offset = np.rint(-low / np.where(rounded == 0, np.inf, rounded))
        zeros = np.minimum(offset, largest).astype(np.uint8)
    *_, k, n = values.shape
    zero = element.bias if zeros is None else spread(zeros, block, k, n)
    steps = divide(values, spread(scales, block, k, n))
    np.rint(steps, out=steps)
    codes = np.clip(np.add(steps, zero, out=steps), 0, largest, out=steps).astype(np.uint8)
    return Affine(element, codes, scales, zeros, group_size)


def dequantize(weight: Affine, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, and in its range in float32 for 16-bit scales.

    Args:
        weight: Codes, scales and zero points.
        dtype: numpy type of the result.
    """
    block, (*_, k, n) = Block(weight.group_size), weight.codes.shape
    zero = weight.element.bias if weight.zeros is None else spread(weight.zeros, block, k, n)
    return round_product(
        weight.codes.astype(np.float64) - zero,
        spread(weight.scales, block, k, n),
        dtype,
    )


def check_element(element: DType) -> None:
    """Refuse a type that is not one of `ELEMENTS`.

    Raises:
        WeightError: As said.
    """
    if element not in ELEMENTS:
        known = ", ".join(str(one) for one in ELEMENTS)
        raise WeightError(f"{element} is no type of integer weights with scales; known: {known}")
