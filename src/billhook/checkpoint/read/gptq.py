"""GPTQ, both versions: words of consecutive k, zero points in words of consecutive n, perhaps act-order.

Source: the tensors that AutoGPTQ and GPTQModel write. Version 1 stores zero points less one, modulo 2^bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...dtypes import DType
from ...formats.affine import Affine
from ...formats.stored import read_codes, read_zeros
from ...models import WeightFormat
from ..data import read_array
from ..header import Tensor
from ..stored import Parts, Stored
from .checks import read_scales, refuse
from .order import Order, read_order


def read_gptq(parts: Parts, stored: Stored, wanted: WeightFormat) -> tuple[Affine, Order | None]:
    """Read a module; with act-order, its rows are put into the order of their groups.

    Raises:
        WeightError: Zero points that are not those of symmetric weights although the config says so, scales
            that are not finite, or groups that are no permutation.
    """
    codes = read_codes(read_array(parts["qweight"]), "gptq", stored.bits)
    scales = read_scales(parts["scales"])
    zeros = _read_zeros(parts["qzeros"], stored, wanted.weight)
    order = read_order(parts["g_idx"], stored.k, wanted.group_size) if "g_idx" in parts else None
    if order is not None:
        _check_ordered(parts["g_idx"], order, wanted)
        codes = codes[order]
    return Affine(wanted.weight, codes, scales, zeros, wanted.group_size), order


def _read_zeros(tensor: Tensor, stored: Stored, weight: DType) -> npt.NDArray[np.uint8] | None:
    """Return zero points; None if the type has one throughout, which those stored are then compared with."""
    offset = 1 if stored.format == "gptq" else 0
    held = read_zeros(read_array(tensor), "gptq", stored.bits)
    zeros: npt.NDArray[np.uint8] = (held + np.uint8(offset)) & np.uint8(2**stored.bits - 1)
    if weight.zero_point:
        return zeros
    rule = f"zero points of symmetric weights must be {weight.bias}, stored as {weight.bias - offset}"
    if (held == weight.bias - 1 + offset).all():
        rule += f"; they are those of {'gptq_v2' if offset else 'gptq'}, which checkpoint_format should say"
    refuse(tensor, held, zeros != weight.bias, rule)
    return None


def _check_ordered(g_idx: Tensor, order: Order, wanted: WeightFormat) -> None:
    moved: npt.NDArray[Any] = order != np.arange(len(order))
    if not wanted.ordered:
        refuse(
            g_idx, read_array(g_idx), moved, "groups must be in order, since the config says desc_act = false"
        )
