"""fp8 (e4m3fn) with float scales per tensor, channel, group or block, and MXFP8 with e8m0 scales.

Source: the checkpoints of DeepSeek-V3 (`weight_scale_inv`, which multiplies, for 128 x 128 blocks; with
`scale_fmt` ue8m0 they are powers of two, stored as such or as floats),
compressed-tensors' float-quantized and mxfp8-quantized, ModelOpt's FP8.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import E4M3FN
from ...formats.blocks import Block
from ...formats.fp8 import Fp8
from ...formats.mx import Mx, decode_powers
from ...models import WeightFormat
from ..header import Tensor
from ..stored import Parts, Stored
from .checks import read_e4m3, read_magnitudes, read_powers


def read_fp8(parts: Parts, stored: Stored, wanted: WeightFormat) -> Fp8:
    """Read a module.

    Raises:
        WeightError: A weight that is NaN, or a scale that is negative or not finite.
    """
    rows = stored.block[0] if stored.block else -1
    block = Block(wanted.group_size, -1 if stored.scales == "tensor" else rows)
    codes = read_e4m3(parts["weight"], "weights").T
    groups, columns = block.scale_shape(codes.shape)
    tensor = _find_scales(parts)
    if tensor.dtype == "F8_E8M0":
        scales = decode_powers(read_powers(tensor)).astype(np.float32)  # exact
    else:
        scales = read_magnitudes(tensor)
    return Fp8(codes, scales.reshape(columns, groups).T, block)


def read_mxfp8(parts: Parts) -> Mx:
    """Read a module.

    Raises:
        WeightError: A weight or a scale that is NaN.
    """
    codes = read_e4m3(parts["weight"], "weights")
    return Mx(E4M3FN, codes.T, read_powers(_find_scales(parts)).T)


def _find_scales(parts: Parts) -> Tensor:
    return parts.get("weight_scale_inv") or parts["weight_scale"]
