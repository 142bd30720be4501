"""fp8 weights: an e4m3fn code that stands for its number times the float32 scale of its block.

Arrays are in the order of the GEMM, weights [k, n]; a leading axis of experts is allowed everywhere.

Source: e4m3fn is E4M3 of the OCP 8-bit Floating Point Specification (OFP8) 1.0: bias 7, largest 448, no
infinities, NaN in the two codes of all ones. Blocks of 128 x 128 as in DeepSeek-V3 (arXiv 2412.19437).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import E4M3FN
from ..errors import WeightError
from .blocks import Block, check_codes, divide, find_largest, read_weights, round_product, spread
from .minifloat import LARGEST, check_numbers, decode, encode

TENSOR = Block(-1, -1)
CHANNEL = Block(-1, 1)
GROUP = Block(128, 1)
BLOCK = Block(128, 128)


@dataclass(frozen=True)
class Fp8:
    """fp8 weights, not yet packed.

    Args:
        codes: uint8 [.., k, n], e4m3fn, no NaN.
        scales: f32 [.., blocks of k, blocks of n], finite, not negative; multiplies the number.
        block: The weights that share one scale: TENSOR, CHANNEL, GROUP, BLOCK or another.

    Raises:
        WeightError: A wrong dtype or shape, a code that is NaN, or a scale that is negative or not finite.
    """

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]
    block: Block

    def __post_init__(self) -> None:
        check_codes(self.codes, 0xFF)
        check_numbers(self.codes, "codes")
        want = self.block.scale_shape(self.codes.shape)
        if self.scales.dtype != np.float32 or self.scales.shape != want:
            raise WeightError(
                f"scales must be float32 {want} for blocks of {self.block} "
                f"(got {self.scales.dtype} {self.scales.shape})"
            )
        if not (np.isfinite(self.scales) & (self.scales >= 0)).all():
            raise WeightError("scales must be finite and not negative; found NaN, infinity or a negative one")


def quantize(weight: npt.ArrayLike, block: Block) -> Fp8:
    """Quantize weights, rounding to the nearest e4m3fn number (ties to even).

    A block's scale is its largest magnitude / 448, rounded to float32: the largest weight takes the largest
    number. Codes are chosen for the rounded scale and saturate.

    Args:
        weight: Finite numbers [.., k, n], taken as float32; the last block of an axis may be shorter.
        block: The weights that share one scale.

    Raises:
        WeightError: A weight is not finite.
    """
    values = read_weights(weight)
    *_, k, n = values.shape
    scales = (find_largest(values, block) / LARGEST[E4M3FN]).astype(np.float32)
    return Fp8(encode(divide(values, spread(scales, block, k, n)), E4M3FN), scales, block)


def dequantize(weight: Fp8, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, rounded once to any other type.

    Args:
        weight: Codes and scales.
        dtype: numpy type of the result.
    """
    *_, k, n = weight.codes.shape
    return round_product(decode(weight.codes, E4M3FN), spread(weight.scales, weight.block, k, n), dtype)
