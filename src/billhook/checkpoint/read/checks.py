"""Read tensors and refuse values that no format has, naming file, tensor, place and value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...formats.named import Named
from ..data import read_array
from ..header import Tensor

_E8M0_NAN = 0xFF
_E4M3_NAN = 0x7F  # and 0xff: all bits but the sign
_SIGN = 0x80


def read_named(tensor: Tensor) -> Named:
    """Read a tensor whose values are yet to be checked; messages name its file too."""
    return _name(tensor, read_array(tensor))


def read_scales(tensor: Tensor, what: str = "scales") -> npt.NDArray[Any]:
    """Read scales, or biases, that are floats.

    Args:
        tensor: Of a float type.
        what: What they are, in words.

    Raises:
        WeightError: One is NaN or infinite.
    """
    return read_named(tensor).finite(what)


def read_magnitudes(tensor: Tensor) -> npt.NDArray[np.float32]:
    """Read scales that are floats and not negative, as float32.

    Raises:
        WeightError: One is NaN, infinite or negative.
    """
    scales = read_scales(tensor).astype(np.float32, copy=False)
    refuse(tensor, scales, scales < 0, "scales must not be negative")
    return scales


def read_powers(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """Read e8m0 scales, as codes.

    Raises:
        WeightError: One is NaN.
    """
    codes = read_array(tensor)
    refuse(tensor, codes, codes == _E8M0_NAN, "e8m0 scales must not be NaN (code 255)")
    return codes


def read_e4m3(tensor: Tensor, what: str) -> npt.NDArray[np.uint8]:
    """Read e4m3fn numbers, as codes.

    Args:
        tensor: Of dtype F8_E4M3.
        what: What they are, in words.

    Raises:
        WeightError: One is NaN.
    """
    codes = read_array(tensor)
    refuse(
        tensor, codes, (codes & _E4M3_NAN) == _E4M3_NAN, f"{what} must not be NaN (e4m3 codes 127 and 255)"
    )
    return codes


def read_e4m3_scales(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """Read e4m3fn scales, as codes.

    Raises:
        WeightError: One is NaN or negative.
    """
    codes = read_e4m3(tensor, "scales")
    refuse(tensor, codes, (codes & _SIGN) != 0, "e4m3 scales must not be negative (codes from 128)")
    return codes


def refuse(tensor: Tensor, values: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], rule: str) -> None:
    """Refuse a tensor if any of its values is wrong.

    Args:
        tensor: Where the values come from.
        values: The values.
        wrong: Which of them are wrong.
        rule: What they must be, in words.

    Raises:
        WeightError: One is; names file, tensor, the first place and its value.
    """
    _name(tensor, values).refuse(wrong, rule)


def _name(tensor: Tensor, values: npt.NDArray[Any]) -> Named:
    return Named(f"{tensor.file}: tensor {tensor.name}", values)
