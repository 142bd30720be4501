"""FP4 (e2m1), two codes in a byte, the lower first: NVFP4, MXFP4, and the fused experts of gpt-oss.

Source: compressed-tensors' nvfp4-pack-quantized (`weight_global_scale` divides) and mxfp4-pack-quantized,
ModelOpt's NVFP4 (`weight_scale_2` multiplies), the checkpoints of gpt-oss (`NAME_blocks`, `NAME_scales`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...formats import host, mx, nvfp4
from ...formats.stored import Words
from ..data import read_array
from ..header import Tensor
from ..stored import Parts
from .checks import read_e4m3_scales, read_powers, read_scales, refuse

_FORM = "compressed_tensors"
_BITS = 4


def read_nvfp4(parts: Parts) -> host.Parts:
    """Read a module.

    Raises:
        WeightError: A scale that is NaN or negative, or a global scale that is not positive and finite.
    """
    codes = parts.get("weight_packed") or parts["weight"]
    scales = read_e4m3_scales(parts["weight_scale"]).T
    whole = read_global_scale(parts).reshape(1)
    return host.Parts("nvfp4", _read_words(codes), scales, None, whole, nvfp4.GROUP_SIZE)


def read_global_scale(parts: Parts) -> npt.NDArray[np.float32]:
    """Read the scale that multiplies a whole NVFP4 weight, float32 without axes.

    Raises:
        WeightError: It is not positive and finite, or its reciprocal, which is stored, is not.
    """
    divisor = parts.get("weight_global_scale")
    tensor = divisor or parts["weight_scale_2"]
    stored = read_scales(tensor).reshape(())
    refuse(tensor, stored, stored <= 0, "a global scale must be positive")
    with np.errstate(over="ignore"):
        scale = np.asarray(1 / stored if divisor else stored, np.float32)
    refuse(tensor, stored, ~np.isfinite(scale) | (scale <= 0), "a global scale must have a finite reciprocal")
    return scale


def read_mxfp4(parts: Parts) -> host.Parts:
    """Read a module.

    Raises:
        WeightError: A scale that is NaN.
    """
    scales = read_powers(parts["weight_scale"]).T
    return host.Parts("mxfp4", _read_words(parts["weight_packed"]), scales, None, None, mx.GROUP_SIZE)


def read_experts(parts: Parts, interleaved: bool) -> host.Parts:
    """Read gpt-oss experts that are one tensor.

    Args:
        parts: blocks, U8 [experts, n, k / 32, 16], and scales [experts, n, k / 32].
        interleaved: Whether rows of gate and up take turns; they become gate, then up.

    Returns:
        Weights [experts, k, n].

    Raises:
        WeightError: A scale that is NaN.
    """
    blocks = read_array(parts["blocks"])
    experts, n, groups, size = blocks.shape
    rows = blocks.reshape(experts, n, groups * size)
    scales = read_powers(parts["scales"])
    if interleaved:
        rows, scales = take_turns(rows), take_turns(scales)
    codes = Words(rows, _FORM, _BITS)
    return host.Parts("mxfp4", codes, scales.swapaxes(-1, -2), None, None, mx.GROUP_SIZE)


def _read_words(codes: Tensor) -> Words:
    return Words(read_array(codes), _FORM, _BITS)


def read_experts_bias(bias: Tensor, interleaved: bool) -> npt.NDArray[Any]:
    """Read the biases [experts, n] of such experts.

    Raises:
        WeightError: One is not finite.
    """
    values = read_scales(bias, "biases")
    return take_turns(values) if interleaved else values


def take_turns(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the rows [experts, n, ..] that take turns, those of even numbers first."""
    return np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)
