"""W4A8: 4-bit codes whose products with an e4m3 scale are e4m3 numbers, and a float32 scale for each channel.

    W[k, n] = e4m3((code[k, n] - 8) * scale[group(k), n]) * channel_scale[n]

e4m3() rounds to nearest (ties to even) and saturates at 448. Tensor cores then sum products along all of k,
where exact scales interrupt the sum after each group. The price is two more roundings: to weights that are
normally distributed, quantized in groups of 128, folding adds a root mean square error of 3.3 % of theirs,
however their scales spread; 4 bits alone cost 11.2 %, both together 11.7 %.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.

Source: vLLM's W4A8 for SM90 (`cutlass_w4a8_mm`), whose scales are found in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import E4M3FN, F32, U4B8
from ..errors import WeightError
from . import affine
from .blocks import Block, check_codes, divide, round_product, spread
from .minifloat import LARGEST, check_numbers, decode, encode

GROUP_SIZE = 128
_LARGEST_NUMBER = 8  # the magnitude of code - 8


@dataclass(frozen=True)
class W4a8:
    """W4A8 weights, not yet packed.

    Args:
        codes: uint8 [.., k, n], 0 to 15.
        scales: uint8 [.., groups, n], e4m3fn codes, no NaN.
        channel_scales: f32 [.., n], finite.
        group_size: Weights along k that share one scale; the last group may be shorter.

    Raises:
        WeightError: A wrong dtype or shape, a code out of range, or a scale that is not finite.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]
    channel_scales: npt.NDArray[np.float32]
    group_size: int = GROUP_SIZE

    def __post_init__(self) -> None:
        check_codes(self.codes, 15)
        *experts, _, n = self.codes.shape
        want = Block(self.group_size).scale_shape(self.codes.shape)
        if self.scales.dtype != np.uint8 or self.scales.shape != want:
            raise WeightError(
                f"scales must be e4m3fn codes, uint8 {want} (got {self.scales.dtype} {self.scales.shape})"
            )
        check_numbers(self.scales, "scales")
        channels = self.channel_scales
        if channels.dtype != np.float32 or channels.shape != (*experts, n):
            raise WeightError(
                f"channel_scales must be float32 {(*experts, n)} (got {channels.dtype} {channels.shape})"
            )
        if not np.isfinite(channels).all():
            raise WeightError("channel_scales must be finite; found NaN or infinity")


def quantize(weight: npt.ArrayLike, group_size: int = GROUP_SIZE) -> W4a8:
    """Quantize weights, rounding to nearest (ties to even).

    Scales are those of `affine.quantize`, folded; codes are the nearest for the folded scales before products
    are rounded to e4m3, and saturate.

    Args:
        weight: Finite numbers [.., k, n], taken as float32; the last group may be shorter.
        group_size: Weights along k that share one scale.

    Raises:
        WeightError: A weight is not finite.
    """
    wide = affine.quantize(weight, U4B8, group_size, F32)
    scales, channels = fold(wide.scales)
    *_, k, n = wide.codes.shape
    steps = spread(_multiply(scales, channels), Block(group_size), k, n)
    numbers = np.rint(divide(np.asarray(weight, np.float32), steps))
    codes = np.clip(numbers + U4B8.bias, 0, 15).astype(np.uint8)
    return W4a8(codes, scales, channels, group_size)


def fold(scales: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the scales of groups as e4m3 codes and one float32 scale for each channel.

    A channel's scale is its groups' largest magnitude / (448 / 8), so that no product of a code saturates;
    that of a channel of zeros is 1. The scales of groups are divided by it and rounded to nearest.

    Args:
        scales: [.., groups, n] of symmetric 4-bit weights; finite, taken as float32.

    Returns:
        uint8 [.., groups, n] and float32 [.., n].

    Raises:
        WeightError: A scale is not finite.
    """
    exact = scales.astype(np.float32).astype(np.float64)
    if not np.isfinite(exact).all():
        raise WeightError("scales must be finite; found NaN or infinity")
    largest = np.abs(exact).max(axis=-2)
    channels = (largest / (LARGEST[E4M3FN] / _LARGEST_NUMBER)).astype(np.float32)
    channels = np.where(channels == 0, np.float32(1), channels)
    return encode(exact / channels[..., None, :].astype(np.float64), E4M3FN), channels


def dequantize(weight: W4a8, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, rounded once to any other type.

    Args:
        weight: Codes and both scales.
        dtype: numpy type of the result.
    """
    numbers = decode(round_weights(weight.codes, weight.scales, weight.group_size), E4M3FN)
    return round_product(numbers, weight.channel_scales.astype(np.float64)[..., None, :], dtype)


def round_weights(
    codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8], group_size: int
) -> npt.NDArray[np.uint8]:
    """Return the e4m3 codes [.., k, n] of codes times scales of groups, which tensor cores multiply."""
    *_, k, n = codes.shape
    steps = spread(decode(scales, E4M3FN), Block(group_size), k, n)
    return encode((codes.astype(np.float64) - U4B8.bias) * steps, E4M3FN)


def _multiply(scales: npt.NDArray[np.uint8], channels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the scales of groups and channels multiplied, [.., groups, n]."""
    return decode(scales, E4M3FN) * channels.astype(np.float64)[..., None, :]
