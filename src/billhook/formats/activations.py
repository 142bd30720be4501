"""8-bit activations: s8 or e4m3fn codes times a float32 scale, per token or for the whole tensor.

Activations are [tokens, k]. A dynamic scale is found for each token when it is quantized; a static one is
found before, by `find_scale` on samples, and serves every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import E4M3FN, S8, DType
from ..errors import WeightError
from .blocks import divide, round_product
from .minifloat import LARGEST, check_numbers, decode, encode

_LARGEST = {S8: 127.0, E4M3FN: LARGEST[E4M3FN]}


@dataclass(frozen=True)
class Activations:
    """Quantized activations.

    Args:
        element: s8 or e4m3fn.
        codes: [tokens, k]; int8 for s8, uint8 for e4m3fn.
        scales: f32 [tokens, 1], one for each token, or [1, 1], one for all; finite, not negative.

    Raises:
        WeightError: A wrong type, dtype or shape, a NaN code, or a scale that is negative or not finite.
    """

    element: DType
    codes: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        _check_element(self.element)
        codes, scales = self.codes, self.scales
        want = np.dtype(np.int8 if self.element == S8 else np.uint8)
        if codes.dtype != want or codes.ndim != 2:
            raise WeightError(
                f"codes of {self.element} must be {want} [tokens, k] (got {codes.dtype} {codes.shape})"
            )
        if self.element == E4M3FN:
            check_numbers(codes, "codes")
        if scales.dtype != np.float32 or scales.shape not in {(len(codes), 1), (1, 1)}:
            raise WeightError(
                f"scales must be float32 {(len(codes), 1)} or (1, 1) (got {scales.dtype} {scales.shape})"
            )
        if not (np.isfinite(scales) & (scales >= 0)).all():
            raise WeightError("scales must be finite and not negative; found NaN, infinity or a negative one")


def quantize_dynamic(activations: npt.ArrayLike, element: DType) -> Activations:
    """Quantize with one scale for each token, rounding to nearest (ties to even).

    A token's scale is its largest magnitude / 127 (s8) or / 448 (e4m3fn), rounded to float32; codes are
    chosen for the rounded scale and saturate. A token of zeros has the scale 0.

    Args:
        activations: Finite numbers [tokens, k], taken as float32.
        element: s8 or e4m3fn.

    Raises:
        WeightError: Another type or shape, or a value that is not finite.
    """
    values = _read(activations, element)
    largest = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    return _round(values, (largest / _LARGEST[element]).astype(np.float32), element)


def quantize_static(activations: npt.ArrayLike, scale: float, element: DType) -> Activations:
    """Quantize with one scale for all tokens, rounding to nearest (ties to even).

    Args:
        activations: Finite numbers [tokens, k], taken as float32; what the scale does not cover saturates, at
            -128 and 127 (s8) or at -448 and 448 (e4m3fn).
        scale: Positive, taken as float32.
        element: s8 or e4m3fn.

    Raises:
        WeightError: Another type or shape, or a value or scale that is not finite, or a scale not above 0.
    """
    values = _read(activations, element)
    with np.errstate(over="ignore"):
        scales = np.array([[scale]], np.float32)
    if not (np.isfinite(scales[0, 0]) and scales[0, 0] > 0):
        raise WeightError(f"a static scale must be positive and finite in float32 (got {scale})")
    return _round(values, scales, element)


def find_scale(samples: npt.ArrayLike, element: DType) -> float:
    """Return the static scale that covers samples: their largest magnitude / 127 or / 448, as float32.

    Args:
        samples: Finite numbers [tokens, k], taken as float32, not all zero.
        element: s8 or e4m3fn.

    Raises:
        WeightError: Another type or shape, a value that is not finite, or no scale above 0.
    """
    largest = np.abs(_read(samples, element)).max(initial=0)
    scale = float(np.float32(np.float64(largest) / _LARGEST[element]))
    if scale == 0:
        raise WeightError(f"samples up to {largest:g} give no scale above 0; give samples that are not zero")
    return scale


def dequantize(activations: Activations, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the activations [tokens, k]; exact in float64, rounded once to any other type.

    Args:
        activations: Codes and scales.
        dtype: numpy type of the result.
    """
    codes = activations.codes
    numbers = codes.astype(np.float64) if codes.dtype == np.int8 else decode(codes, E4M3FN)
    return round_product(numbers, activations.scales.astype(np.float64), dtype)


def _read(activations: npt.ArrayLike, element: DType) -> npt.NDArray[np.float32]:
    _check_element(element)
    with np.errstate(over="ignore"):
        values = np.asarray(activations, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] == 0:
        raise WeightError(f"activations must be [tokens, k] with k above 0 (got shape {values.shape})")
    if not np.isfinite(values).all():
        raise WeightError("activations must be finite; found NaN or infinity")
    return values


def _check_element(element: DType) -> None:
    if element not in _LARGEST:
        known = ", ".join(str(one) for one in _LARGEST)
        raise WeightError(f"{element} is no type of 8-bit activations; known: {known}")


def _round(values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], element: DType) -> Activations:
    steps = divide(values, scales.astype(np.float64))
    if element == E4M3FN:
        return Activations(element, encode(steps, element), scales)
    return Activations(element, np.clip(np.rint(steps), -128, 127).astype(np.int8), scales)
