"""Pack the tensors of checkpoints, one layer at a time."""

from __future__ import annotations

import torch

from ..formats import compressed_tensors, gptq
from .packing import pack_quantized
from .tensors import to_numpy
from .weight import PackedWeight


def import_gptq(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    qzeros: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    *,
    group_size: int,
    version: int = 1,
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack a GPTQ checkpoint's tensors of one layer; the result lies where `qweight` does.

    Args:
        qweight: int32 [k / 8, n].
        scales: float16 or bfloat16 [groups, n].
        qzeros: int32 [groups, n / 8]; checked to be symmetric.
        g_idx: int32 [k], the group of each input feature; only the trivial order is served.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        version: 1 (`gptq`: zero points stored less one) or 2 (`gptq_v2`).
        dtype: Type of scales and activations; the scales' own by default.

    Raises:
        WeightError: A wrong dtype or shape, an asymmetric zero point, or act-order.
    """
    quantized = gptq.read(
        to_numpy(qweight),
        to_numpy(scales.to(dtype or scales.dtype)),
        None if qzeros is None else to_numpy(qzeros),
        None if g_idx is None else to_numpy(g_idx),
        group_size=group_size,
        version=version,
    )
    return pack_quantized(quantized, qweight.device)


def import_compressed_tensors(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    *,
    k: int,
    group_size: int,
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack a compressed-tensors (`pack-quantized`, 4 bits, symmetric) layer where `weight_packed` lies.

    Args:
        weight_packed: int32 [n, ceil(k / 8)].
        weight_scale: float16 or bfloat16 [n, groups].
        k: Input features (the checkpoint's `weight_shape[1]`).
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        dtype: Type of scales and activations; the scales' own by default.

    Raises:
        WeightError: A wrong dtype or shape.
    """
    quantized = compressed_tensors.read(
        to_numpy(weight_packed),
        to_numpy(weight_scale.to(dtype or weight_scale.dtype)),
        k=k,
        group_size=group_size,
    )
    return pack_quantized(quantized, weight_packed.device)
