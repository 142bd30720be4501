"""NVFP4: 16 e2m1 codes along k that share an e4m3 scale, and one float32 scale for the whole weight.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.

Source: NVIDIA, Pretraining Large Language Models with NVFP4 (arXiv 2509.25149), for both scales. The
global scale multiplies here, as ModelOpt's weight_scale_2 does; compressed-tensors stores its reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import E2M1F, E4M3FN
from ..errors import WeightError
from .blocks import (
    Block,
    check_codes,
    check_whole_groups,
    divide,
    find_largest,
    read_weights,
    round_product,
    spread,
)
from .minifloat import LARGEST, check_numbers, decode, encode

GROUP_SIZE = 16
_BLOCK = Block(GROUP_SIZE)
_SIGN = 0x80
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


@dataclass(frozen=True)
class Nvfp4:
    """NVFP4 weights, not yet packed.

    Args:
        codes: uint8 [.., k, n], e2m1, 0 to 15, one code each.
        scales: uint8 [.., k / 16, n], e4m3fn codes, no NaN, no sign.
        global_scale: f32, one for [k, n] (no axes) or one for each expert [experts]; finite and positive.

    Raises:
        WeightError: A wrong dtype or shape, k not a multiple of 16, a code or a scale out of range.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]
    global_scale: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        check_codes(self.codes, 15)
        *experts, k, _ = self.codes.shape
        check_whole_groups(k, GROUP_SIZE, "NVFP4")
        want = _BLOCK.scale_shape(self.codes.shape)
        if self.scales.dtype != np.uint8 or self.scales.shape != want:
            raise WeightError(
                f"scales must be e4m3fn codes, uint8 {want} (got {self.scales.dtype} {self.scales.shape})"
            )
        check_numbers(self.scales, "scales")
        if (self.scales & _SIGN).any():
            raise WeightError(f"scales must not be negative (got e4m3fn code {self.scales.max():#x})")
        whole = self.global_scale
        if whole.dtype != np.float32 or whole.shape != tuple(experts):
            raise WeightError(
                f"global_scale must be float32 {tuple(experts)} (got {whole.dtype} {whole.shape})"
            )
        if not (np.isfinite(whole) & (whole > 0)).all():
            raise WeightError(f"global_scale must be finite and positive (got {whole})")


def quantize(weight: npt.ArrayLike) -> Nvfp4:
    """Quantize weights, rounding to the nearest e2m1 number (ties to even).

    The global scale is the largest magnitude / (448 * 6), rounded to float32, but at least the smallest
    normal number. A block's scale is its largest magnitude / (6 * global scale), rounded to e4m3; codes are
    chosen for the rounded scales and saturate. Blocks whose scale rounds to zero become zero.

    Args:
        weight: Finite numbers [.., k, n], taken as float32; k a multiple of 16.

    Raises:
        WeightError: A weight is not finite, or k is not a multiple of 16.
    """
    values = read_weights(weight)
    *_, k, n = values.shape
    check_whole_groups(k, GROUP_SIZE, "NVFP4")
    largest = find_largest(values, _BLOCK)
    whole = (largest.max(axis=(-2, -1)) / (LARGEST[E4M3FN] * LARGEST[E2M1F])).astype(np.float32)
    whole = np.asarray(np.maximum(whole, _SMALLEST_NORMAL))
    factor = whole.astype(np.float64)[..., None, None]
    scales = encode(largest / (LARGEST[E2M1F] * factor), E4M3FN)
    steps = spread(decode(scales, E4M3FN) * factor, _BLOCK, k, n)
    return Nvfp4(encode(divide(values, steps), E2M1F), scales, whole)


def dequantize(weight: Nvfp4, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, rounded once to any other type.

    Args:
        weight: Codes and both scales.
        dtype: numpy type of the result.
    """
    *_, k, n = weight.codes.shape
    steps = decode(weight.scales, E4M3FN) * weight.global_scale.astype(np.float64)[..., None, None]
    return round_product(decode(weight.codes, E2M1F), spread(steps, _BLOCK, k, n), dtype)
