"""u4b8: 4-bit codes 0..15 that stand for (code - 8) * scale, one scale per group of k or per output channel.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import F16, DType
from ..errors import WeightError
from .elements import numpy_dtype

BIAS = 8
ZERO_CODE = 8


@dataclass(frozen=True)
class Quantized:
    """Quantized weights, not yet packed.

    Args:
        codes: uint8 [.., k, n], 0 to 15.
        scales: f16 or bf16 [.., groups, n].
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[Any]
    group_size: int

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        if codes.dtype != np.uint8 or codes.ndim not in (2, 3):
            raise WeightError(
                f"codes must be uint8 [.., k, n], 2 or 3 axes (got {codes.dtype} {codes.shape})"
            )
        *experts, k, n = codes.shape
        want = (*experts, count_groups(k, self.group_size), n)
        if scales.shape != want:
            raise WeightError(f"scales must be {want} for group_size {self.group_size} (got {scales.shape})")

    @property
    def k(self) -> int:
        """Input features."""
        return int(self.codes.shape[-2])

    @property
    def n(self) -> int:
        """Output features."""
        return int(self.codes.shape[-1])


def count_groups(k: int, group_size: int) -> int:
    """Return the number of scales along k: ceil(k / group_size), or 1 for channel scales.

    Raises:
        WeightError: group_size is neither positive nor -1.
    """
    if group_size == -1:
        return 1
    if group_size <= 0:
        raise WeightError(f"group_size must be positive, or -1 for channel scales (got {group_size})")
    return -(-k // group_size)


def quantize(weight: npt.ArrayLike, group_size: int, scale_dtype: DType = F16) -> Quantized:
    """Quantize weights symmetrically, rounding to nearest within the range of their group.

    A group's scale is the smallest that covers it, max(largest / 7, -smallest / 8),
    rounded to `scale_dtype`; codes are chosen for the rounded scale.

    Args:
        weight: Finite numbers [.., k, n].
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        scale_dtype: f16 or bf16.

    Raises:
        WeightError: A weight is not finite, or too large for `scale_dtype`.
    """
    values = np.asarray(weight, dtype=np.float32)
    if values.ndim not in (2, 3):
        raise WeightError(f"weights must be [k, n] or [experts, k, n] (got shape {values.shape})")
    if not np.isfinite(values).all():
        raise WeightError("weights must be finite; found NaN or infinity")
    *experts, k, n = values.shape
    groups = count_groups(k, group_size)
    size = k if group_size == -1 else group_size
    padded = np.zeros((*experts, groups * size, n), np.float32)
    padded[..., :k, :] = values
    grouped = padded.reshape(*experts, groups, size, n)
    exact = np.maximum(grouped.max(axis=-2) / 7, -grouped.min(axis=-2) / 8)
    with np.errstate(over="ignore"):
        scales = np.maximum(exact, 0).astype(numpy_dtype(scale_dtype))
    rounded = scales.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise WeightError(f"weights up to {np.abs(values).max():g} need a scale beyond {scale_dtype}")
    divisor = np.where(rounded == 0, np.float32(np.inf), rounded)[..., None, :]
    steps = np.rint(grouped / divisor)
    codes = (np.clip(steps, -BIAS, 15 - BIAS) + BIAS).astype(np.uint8)
    return Quantized(codes.reshape(*experts, groups * size, n)[..., :k, :], scales, group_size)


def dequantize(quantized: Quantized, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float32 and float64.

    Args:
        quantized: Codes and scales.
        dtype: numpy type of the result.
    """
    k, size = quantized.k, quantized.group_size
    group = np.zeros(k, np.intp) if size == -1 else np.arange(k) // size
    scales = quantized.scales.astype(dtype)[..., group, :]
    weights: npt.NDArray[Any] = (quantized.codes.astype(dtype) - BIAS) * scales
    return weights
