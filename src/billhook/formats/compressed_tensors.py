"""Read compressed-tensors' packed integers (pack-quantized): words of consecutive k, perhaps act-order.

Source: compressed-tensors. Codes and zero points are stored plus 2^(bits - 1); zero points are packed along
n.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..errors import WeightError
from .affine import check_element
from .host import Parts
from .named import Named
from .order import Order, find_order
from .stored import Words, read_codes, read_zeros

_FORM = "compressed_tensors"
_WORD_BITS = 32


def read(
    weight_packed: Named,
    weight_scale: Named,
    weight_zero_point: Named | None,
    weight_g_idx: Named | None,
    *,
    element: DType,
    k: int,
    group_size: int,
) -> tuple[Parts, Order | None]:
    """Read one layer; with act-order, its rows are put into the order of their groups.

    The codes themselves stay in their words: `host.join` reads them, and checks scales against them. Only
    where k does not fill its last word are they read here.

    Args:
        weight_packed: int32 [n, ceil(k bits / 32)].
        weight_scale: f16, bf16 or f32 [n, groups].
        weight_zero_point: int32 [ceil(n bits / 32), groups]; None for types with a bias.
        weight_g_idx: Integers [k], the group of each input feature; None if they are in order.
        element: u4, u4b8, u8 or u8b128.
        k: Input features (`weight_shape[1]`).
        group_size: Weights along k that share one scale; -1 for one scale per output channel.

    Returns:
        The weights, and the order of input features that their rows are in; None if they are in order.

    Raises:
        WeightError: A wrong type, dtype or shape, scales that are not finite, or groups that are no
            permutation.
    """
    check_element(element)
    words, columns = weight_packed.values, _words(k, element)
    if words.dtype != "int32" or words.ndim != 2 or words.shape[1] != columns:
        raise WeightError(
            f"{weight_packed.name} must be int32 [n, {columns}] for k={k} (got {words.dtype} {words.shape})"
        )
    scales = weight_scale.finite()
    if scales.ndim != 2:
        raise WeightError(f"{weight_scale.name} must be [n, groups] (got shape {scales.shape})")
    n = len(words)
    zeros = None
    if weight_zero_point is not None:
        packed = weight_zero_point.words(_words(n, element), scales.shape[1])
        zeros = read_zeros(packed, _FORM, element.bits)[:, :n]
    order = None if weight_g_idx is None else find_order(weight_g_idx, k, group_size)
    codes: Words | npt.NDArray[np.uint8] = Words(words, _FORM, element.bits, order)
    if columns * _WORD_BITS != k * element.bits:  # kernels take no such k
        rows = read_codes(words, _FORM, element.bits)[:k]
        codes = rows if order is None else rows[order]
    return Parts(element.name, codes, scales.T, zeros, None, group_size), order


def _words(count: int, element: DType) -> int:
    """Return how many words hold so many codes."""
    return -(-count * element.bits // _WORD_BITS)
