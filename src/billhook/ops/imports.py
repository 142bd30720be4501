"""Pack the tensors of checkpoints, one layer at a time."""

from __future__ import annotations

import numpy as np
import torch

from ..formats import compressed_tensors, gptq, host
from ..formats.host import Parts
from ..formats.named import Named
from ..formats.order import refuse_order
from ..formats.packed import find_format
from ..formats.stored import Words
from .packing import pack_quantized, pack_weight, send
from .tensors import to_numpy
from .weight import PackedWeight

_NO_ORDER = "a packed weight holds no act-order (desc_act); billhook.load serves checkpoints that have it"


def import_gptq(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    qzeros: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    *,
    group_size: int,
    version: int = 1,
    dtype: torch.dtype | None = None,
    format: str = "u4b8",  # noqa: A002 - as in pack_weight
) -> PackedWeight:
    """Pack a GPTQ checkpoint's tensors of one layer; the result lies where `qweight` does.

    Args:
        qweight: int32 [k bits / 32, n].
        scales: float16, bfloat16 or float32 [groups, n].
        qzeros: int32 [groups, n bits / 32]; checked to be symmetric for u4b8 and u8b128, which need none.
        g_idx: int32 [k], the group of each input feature; only the trivial order is served.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        version: 1 (`gptq`: zero points stored less one) or 2 (`gptq_v2`).
        dtype: Type of scales and activations; as in `pack_weight` by default.
        format: u4b8 or u8b128 (symmetric), u4 or u8 (with zero points), or w4a8: u4b8 with its scales folded.

    Raises:
        WeightError: A wrong dtype or shape, zero points that the format does not have, or act-order.
    """
    groups = None if g_idx is None else Named("g_idx", to_numpy(g_idx))
    value, order = gptq.read(
        _name_words("qweight", qweight),
        Named("scales", to_numpy(scales)),
        None if qzeros is None else Named("qzeros", to_numpy(qzeros)),
        groups,
        element=find_format(format).weight,
        group_size=group_size,
        version=version,
    )
    if groups is not None:
        refuse_order(groups, order, _NO_ORDER)
    return _pack(_fold(value, format), qweight, dtype)


def import_compressed_tensors(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_zero_point: torch.Tensor | None = None,
    *,
    k: int,
    group_size: int,
    dtype: torch.dtype | None = None,
    format: str = "u4b8",  # noqa: A002 - as in pack_weight
) -> PackedWeight:
    """Pack a compressed-tensors layer (`pack-quantized`) where `weight_packed` lies.

    Args:
        weight_packed: int32 [n, ceil(k bits / 32)].
        weight_scale: float16, bfloat16 or float32 [n, groups].
        weight_zero_point: int32 [ceil(n bits / 32), groups]; for u4 and u8.
        k: Input features (the checkpoint's `weight_shape[1]`).
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        dtype: Type of scales and activations; as in `pack_weight` by default.
        format: u4b8 or u8b128 (symmetric), u4 or u8 (with zero points), or w4a8: u4b8 with its scales folded.

    Raises:
        WeightError: A wrong dtype or shape, or zero points that the format does not have.
    """
    value, _ = compressed_tensors.read(
        _name_words("weight_packed", weight_packed),
        Named("weight_scale", to_numpy(weight_scale)),
        None if weight_zero_point is None else Named("weight_zero_point", to_numpy(weight_zero_point)),
        None,
        element=find_format(format).weight,
        k=k,
        group_size=group_size,
    )
    return _pack(_fold(value, format), weight_packed, dtype)


def _name_words(name: str, words: torch.Tensor) -> Named:
    """Return words by name; those on a GPU, which are read there, as others of their dtype and shape."""
    if not words.is_cuda:
        return Named(name, to_numpy(words))
    return Named(name, np.broadcast_to(to_numpy(words.new_zeros(())), tuple(words.shape)))


def _fold(value: Parts, format: str) -> Parts:  # noqa: A002 - as in pack_weight
    """Return a layer in the format asked for, which folds its scales or leaves it as it is."""
    return host.fold(value) if find_format(format).folded else value


def _pack(value: Parts, words: torch.Tensor, dtype: torch.dtype | None) -> PackedWeight:
    """Pack a layer where its words are.

    Args:
        value: The layer.
        words: The words of its codes.
        dtype: As in `pack_weight`.
    """
    if not words.is_cuda or not isinstance(value.codes, Words):
        return pack_quantized(value, words.device, dtype)
    rest = send(value._replace(codes=np.empty((0, 0), np.uint8)), words.device)
    return pack_weight(**(rest | {"codes": words, "stored": value.codes.form}), dtype=dtype)
