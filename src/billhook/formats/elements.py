"""Element types as numpy knows them, and what rounding to them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..dtypes import BF16, F16, F32, DType
from ..errors import InputError

_NUMPY: dict[DType, np.dtype[Any]] = {
    F16: np.dtype(np.float16),
    BF16: np.dtype(ml_dtypes.bfloat16),
    F32: np.dtype(np.float32),
}


@dataclass(frozen=True)
class Rounding:
    """What rounding to nearest costs: |round(x) - x| <= max(unit * |x|, floor) while |x| <= largest.

    Args:
        unit: Unit roundoff, half the spacing of the numbers just above 1.
        floor: Half the smallest subnormal.
        largest: Largest finite number.
    """

    unit: float
    floor: float
    largest: float


def numpy_dtype(element: DType) -> np.dtype[Any]:
    """Return the numpy type of a floating-point element type.

    Raises:
        InputError: numpy and ml-dtypes hold no such type for activations, scales or outputs.
    """
    try:
        return _NUMPY[element]
    except KeyError:
        known = ", ".join(str(one) for one in _NUMPY)
        raise InputError(f"{element} is no type of scales, activations or outputs; known: {known}") from None


def find_element(kind: np.dtype[Any]) -> DType | None:
    """Return the floating-point element type that a numpy type holds; None if it is none of them."""
    return next((element for element, one in _NUMPY.items() if one == kind), None)


def rounding(element: DType) -> Rounding:
    """Return what rounding to `element` costs.

    Raises:
        InputError: As `numpy_dtype`.
    """
    info = ml_dtypes.finfo(numpy_dtype(element))  # type: ignore[no-untyped-call]
    return Rounding(float(info.eps) / 2, float(info.smallest_subnormal) / 2, float(info.max))
