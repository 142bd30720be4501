"""u4b8: 4-bit codes 0..15 that stand for (code - 8) * scale, one scale per group of k or per output channel.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import F16, U4B8, DType
from ..errors import WeightError
from . import affine
from .blocks import Block, check_codes, count_groups

__all__ = ["BIAS", "ZERO_CODE", "Quantized", "count_groups", "dequantize", "quantize"]

BIAS = U4B8.bias
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
        check_codes(codes, 15)
        want = Block(self.group_size).scale_shape(codes.shape)
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
    weights = affine.quantize(weight, U4B8, group_size, scale_dtype)
    return Quantized(weights.codes, weights.scales, group_size)


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
