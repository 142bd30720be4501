"""Codes of the small floats, e4m3fn and e2m1: rounded once, saturating, exact both ways."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..dtypes import E2M1F, E4M3FN, DType
from ..errors import WeightError

_TYPES: dict[DType, np.dtype[Any]] = {
    E4M3FN: np.dtype(ml_dtypes.float8_e4m3fn),
    E2M1F: np.dtype(ml_dtypes.float4_e2m1fn),
}
LARGEST = {E4M3FN: 448.0, E2M1F: 6.0}


def encode(values: npt.NDArray[np.float64], element: DType) -> npt.NDArray[np.uint8]:
    """Round to the nearest number of the type (ties to even); what exceeds the largest becomes it.

    The rounding is done here in float64: ml-dtypes converts float64 by way of float32, which rounds twice.

    Args:
        values: float64, finite.
        element: e4m3fn or e2m1f.

    Returns:
        uint8 of the same shape, one code each (e2m1f: 0 to 15).
    """
    info = ml_dtypes.finfo(_TYPES[element])  # type: ignore[no-untyped-call]
    within = np.clip(values, -LARGEST[element], LARGEST[element])
    exponents = np.maximum(np.frexp(within)[1] - 1, info.minexp)
    steps = np.ldexp(1.0, exponents - info.nmant)
    nearest = np.rint(within / steps) * steps
    codes: npt.NDArray[np.uint8] = nearest.astype(_TYPES[element]).view(np.uint8)
    return codes


def decode(codes: npt.NDArray[np.uint8], element: DType) -> npt.NDArray[np.float64]:
    """Return the numbers that codes stand for.

    Args:
        codes: uint8, of any shape.
        element: e4m3fn or e2m1f.
    """
    return np.ascontiguousarray(codes).view(_TYPES[element]).astype(np.float64)


def check_numbers(codes: npt.NDArray[np.uint8], name: str) -> None:
    """Refuse e4m3fn codes that are NaN (0x7f and 0xff; the type has no infinities).

    Raises:
        WeightError: A code is NaN; the message says where.
    """
    wrong = (codes & 0x7F) == 0x7F
    if wrong.any():
        at = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise WeightError(f"{name} must not be NaN (got code {codes[at]:#x} at {at})")
