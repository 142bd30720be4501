"""Read compressed-tensors' packed integers (pack-quantized): words of consecutive k, perhaps act-order.

Source: compressed-tensors. Codes and zero points are stored plus 2^(bits - 1); zero points are packed along
n.
"""

from __future__ import annotations

from ..dtypes import DType
from ..errors import WeightError
from .affine import Affine, check_element
from .named import Named
from .order import Order, find_order
from .stored import read_codes, read_zeros

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
) -> tuple[Affine, Order | None]:
    """Read one layer; with act-order, its rows are put into the order of their groups.

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
    codes, n = read_codes(words, "compressed_tensors", element.bits)[:k], len(words)
    zeros = None
    if weight_zero_point is not None:
        packed = weight_zero_point.words(_words(n, element), scales.shape[1])
        zeros = read_zeros(packed, "compressed_tensors", element.bits)[:, :n]
    order = None if weight_g_idx is None else find_order(weight_g_idx, k, group_size)
    if order is not None:
        codes = codes[order]
    return Affine(element, codes, scales.T, zeros, group_size), order


def _words(count: int, element: DType) -> int:
    """Return how many words hold so many codes."""
    return -(-count * element.bits // _WORD_BITS)
