"""Read compressed-tensors' `pack-quantized` tensors (4 bits, symmetric) as u4b8.

Source: the compressed-tensors format: `weight_packed` holds eight values of
consecutive k per word, lowest nibble first, each stored as value + 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightError
from .gptq import nibbles
from .u4b8 import Quantized


def read(
    weight_packed: npt.NDArray[np.int32], weight_scale: npt.NDArray[Any], *, k: int, group_size: int
) -> Quantized:
    """Read one layer.

    Args:
        weight_packed: int32 [n, ceil(k / 8)].
        weight_scale: f16 or bf16 [n, groups].
        k: Input features (`weight_shape[1]`).
        group_size: Weights along k that share one scale; -1 for one scale per output channel.

    Raises:
        WeightError: A wrong dtype or shape.
    """
    if weight_packed.dtype != np.int32 or weight_packed.ndim != 2 or weight_packed.shape[1] != -(-k // 8):
        raise WeightError(
            f"weight_packed must be int32 [n, {-(-k // 8)}] for k={k} "
            f"(got {weight_packed.dtype} {weight_packed.shape})"
        )
    if weight_scale.ndim != 2:
        raise WeightError(f"weight_scale must be [n, groups] (got shape {weight_scale.shape})")
    codes = nibbles(weight_packed, axis=1)[:, :k]
    return Quantized(np.ascontiguousarray(codes.T), np.ascontiguousarray(weight_scale.T), group_size)
