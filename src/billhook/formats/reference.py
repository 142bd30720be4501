"""The float64 reference GEMM and MoE, and how far a kernel may be from it.

`error_bound` is derived, not tuned; docs/numerics.md gives the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import STRIP
from ..dtypes import E4M3FN, S8, DType
from ..errors import WeightError
from .blocks import count_groups
from .elements import rounding

# A tensor core adds 16 products and the accumulator, aligned to the largest and cut to 24 bits: each of the
# 17 addends and the sum lose less than one unit of the last place: the unit is 2^-23, not 2^-24 (rounding).
_MMA_K = 16
_MMA_LOSSES = _MMA_K + 2
_UNIT = 2.0**-23
_MAX_WARPS = 16
_EPILOGUE_STEPS = 4  # channel scale, global scale, bias, top-k weight
# 8-bit activations: SM90 aligns 32 products of e4m3 and the sum to the largest and keeps 13 bits below it.
# docs/numerics.md, "Activations of 8 bits", tells why one unit of the sum of magnitudes covers a step.
_NARROW_MMA_K = 32
_GROUP_K = 64  # Marlin multiplies the sums of a group by its scale for each block of 64 at least
_NARROW_UNIT = 2.0**-13
_NARROW_RMS = 2.0**-12
_NARROW_EPILOGUE_STEPS = _EPILOGUE_STEPS + 2  # token scale, another scale per channel


@dataclass(frozen=True)
class Reference:
    """An exact result and the sums that bound a kernel's error; arrays of float64.

    Args:
        value: D [rows, n] before rounding to the output's type.
        magnitude: (|A| @ |W| + |bias|) * |top-k weight| [rows, n].
        activations: Sum over k of |A| * |top-k weight| [rows, 1].
    """

    value: npt.NDArray[np.float64]
    magnitude: npt.NDArray[np.float64]
    activations: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ErrorBound:
    """How far a kernel's output may be from the reference, as factors of the sums in `Reference`.

    Args:
        value: Factor of |value|.
        magnitude: Factor of magnitude.
        activations: Factor of activations.
        floor: Added to every element.
        rms: Largest root-mean-square error of a whole output relative to its root mean square.
        largest: Largest finite output; beyond it, an infinity of the right sign is right.
    """

    value: float
    magnitude: float
    activations: float
    floor: float
    rms: float
    largest: float

    def allowed(self, value: Any, magnitude: Any, activations: Any) -> Any:
        """Return the largest allowed |D - value| of each element.

        Args:
            value: As in `Reference`; a numpy array or a torch tensor, like the others.
            magnitude: As in `Reference`.
            activations: As in `Reference`.
        """
        return (
            self.value * abs(value) + self.magnitude * magnitude + self.activations * activations + self.floor
        )


def error_bound(
    k: int, group_size: int, out: DType, rounded_weights: bool, activations: DType | None = None
) -> ErrorBound:
    """Derive the error bound of a kernel that accumulates in float32 and rounds its output once.

    Args:
        k: Input features.
        group_size: Weights along k that share one scale; -1 for channel scales, and where scales are folded
            into the weights.
        out: Type of the output.
        rounded_weights: Whether code times scale is rounded to the activations' type before the MMA; products
            of e2m1 codes never are: with scales of 8 bits they are exact.
        activations: Type of the activations; that of the output if None.
    """
    unit = rounding(out)
    blocks = -(-k // STRIP)
    if activations in (E4M3FN, S8):  # each part of a sum is rounded to float32, exact before if of s8
        scaled = 0 if group_size == -1 else -(-k // min(group_size, _GROUP_K))
        steps = scaled + 2 * blocks + _NARROW_EPILOGUE_STEPS
    else:
        mma = _MMA_LOSSES * -(-k // _MMA_K)
        steps = mma + 2 * count_groups(k, group_size) + blocks + _MAX_WARPS + _EPILOGUE_STEPS
    summed = k if group_size == -1 else min(k, group_size)  # within tensor cores
    cuts = -(-summed // _NARROW_MMA_K) if activations == E4M3FN else 0
    gamma = steps * _UNIT / (1 - steps * _UNIT) + cuts * _NARROW_UNIT
    weight = unit.unit if rounded_weights else 0.0
    before = gamma + weight * (1 + gamma)
    return ErrorBound(
        value=unit.unit,
        magnitude=before * (1 + unit.unit),
        activations=unit.floor * (1 + gamma) * (1 + unit.unit) if rounded_weights else 0.0,
        floor=unit.floor,
        rms=float(np.sqrt(unit.unit**2 + weight**2 + cuts * _NARROW_RMS**2)),
        largest=unit.largest,
    )


def gemm(
    a: npt.ArrayLike,
    weight: npt.NDArray[Any],
    bias: npt.ArrayLike | None = None,
) -> Reference:
    """Compute A @ W + bias in float64.

    Args:
        a: Activations [m, k].
        weight: Dequantized weights [k, n].
        bias: [n], or None.

    Raises:
        WeightError: k of A and of the weights differ.
    """
    left, right = np.asarray(a, np.float64), np.asarray(weight, np.float64)
    if left.shape[-1] != right.shape[0]:
        raise WeightError(f"activations have k={left.shape[-1]}, weights k={right.shape[0]}")
    value, magnitude = left @ right, np.abs(left) @ np.abs(right)
    if bias is not None:
        extra = np.asarray(bias, np.float64)
        value, magnitude = value + extra, magnitude + np.abs(extra)
    return Reference(value, magnitude, np.abs(left).sum(axis=1, keepdims=True))


def moe_gemm(
    a: npt.ArrayLike,
    weights: npt.NDArray[Any],
    topk_ids: npt.ArrayLike,
    topk_weights: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
) -> Reference:
    """Multiply each token by the weights of the experts it visits, in float64.

    Args:
        a: Activations [tokens, k].
        weights: Dequantized weights [experts, k, n].
        topk_ids: Experts of each token [tokens, top_k]; an id outside the experts gives a row of zeros.
        topk_weights: Multiplies each (token, slot) row, bias included; [tokens, top_k], or None.
        bias: [experts, n], or None.

    Returns:
        Rows in (token, slot) order: [tokens * top_k, n].
    """
    left, ids = np.asarray(a, np.float64), np.asarray(topk_ids)
    experts, _, n = weights.shape
    rows, flat = np.repeat(left, ids.shape[1], axis=0), ids.reshape(-1)
    result = Reference(np.zeros((len(rows), n)), np.zeros((len(rows), n)), np.zeros((len(rows), 1)))
    for expert in range(experts):
        chosen = flat == expert
        if not chosen.any():
            continue
        one = gemm(rows[chosen], weights[expert], None if bias is None else np.asarray(bias)[expert])
        result.value[chosen] = one.value
        result.magnitude[chosen] = one.magnitude
        result.activations[chosen] = one.activations
    if topk_weights is None:
        return result
    factor = np.asarray(topk_weights, np.float64).reshape(-1, 1)
    return Reference(
        result.value * factor, result.magnitude * np.abs(factor), result.activations * np.abs(factor)
    )
