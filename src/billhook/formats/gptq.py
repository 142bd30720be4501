"""Read GPTQ tensors, both versions: words of consecutive k, zero points in words of n, perhaps act-order.

Source: the tensors that AutoGPTQ and GPTQModel write. Version 1 (`checkpoint_format` gptq) stores zero points
less one, modulo 2^bits; version 2 (gptq_v2) as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dtypes import DType
from ..errors import WeightError
from .affine import check_element
from .blocks import count_groups
from .host import Parts
from .named import Named
from .order import Order, find_order
from .stored import Words, read_zeros

_NAMES = {1: "gptq", 2: "gptq_v2"}
_WORD_BITS = 32


def read(
    qweight: Named,
    scales: Named,
    qzeros: Named | None,
    g_idx: Named | None,
    *,
    element: DType,
    group_size: int,
    version: int,
) -> tuple[Parts, Order | None]:
    """Read one layer; with act-order, its rows are put into the order of their groups.

    The codes themselves stay in their words: `host.join` reads them, and checks scales against them.

    Args:
        qweight: int32 [k bits / 32, n].
        scales: f16, bf16 or f32 [groups, n].
        qzeros: int32 [groups, n bits / 32]; may be None for types with a bias, which it is compared with.
        g_idx: Integers [k], the group of each input feature; None if they are in order.
        element: u4, u4b8, u8 or u8b128.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        version: 1 or 2.

    Returns:
        The weights, and the order of input features that their rows are in; None if they are in order.

    Raises:
        WeightError: A wrong type, dtype or shape, zero points other than the type's, scales that are not
            finite, or groups that are no permutation.
    """
    if version not in _NAMES:
        raise WeightError(f"GPTQ format version must be 1 or 2 (got {version})")
    check_element(element)
    if qweight.values.ndim != 2:
        raise WeightError(f"{qweight.name} must have 2 axes (got shape {qweight.values.shape})")
    rows, n = qweight.values.shape
    k = rows * _WORD_BITS // element.bits
    zeros = None
    if qzeros is not None:
        words = qzeros.words(count_groups(k, group_size), -(-n * element.bits // _WORD_BITS))
        held = Named(qzeros.name, read_zeros(words, "gptq", element.bits)[:, :n])
        zeros = _read_zeros(held, element, version)
    order = None if g_idx is None else find_order(g_idx, k, group_size)
    codes = Words(qweight.values, "gptq", element.bits, order)
    return Parts(element.name, codes, scales.finite(), zeros, None, group_size), order


def _read_zeros(stored: Named, element: DType, version: int) -> npt.NDArray[np.uint8] | None:
    """Return zero points; None if the type has one throughout, which those stored are then compared with."""
    offset = 1 if version == 1 else 0
    if element.zero_point:
        zeros: npt.NDArray[np.uint8] = (stored.values + np.uint8(offset)) & np.uint8(2**element.bits - 1)
        return zeros
    wanted = element.bias - offset
    rule = f"zero points of symmetric weights must be {element.bias}, stored as {wanted}"
    if (stored.values == element.bias - 1 + offset).all():
        other = 3 - version
        rule += f"; they are those of {_NAMES[other]}, version {other}, which checkpoint_format should say"
    stored.refuse(stored.values != wanted, rule)
    return None
