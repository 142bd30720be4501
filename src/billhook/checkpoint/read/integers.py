"""compressed-tensors' integers: packed in words of consecutive k (pack-quantized), or as s8 (int-quantized).

Source: compressed-tensors. A weight is (code - zero point) * scale, signed or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import WeightError
from ...formats import compressed_tensors, host
from ...formats.affine import Affine
from ...formats.order import Order
from ...models import WeightFormat
from ..data import read_array
from ..stored import Parts, Stored
from .checks import read_named, read_scales

_SIGN = np.uint8(0x80)  # two's complement + 128, in 8 bits


def read_pack_quantized(
    parts: Parts, stored: Stored, wanted: WeightFormat
) -> tuple[host.Parts, Order | None]:
    """Read a module; with act-order, its rows are put into the order of their groups.

    Raises:
        WeightError: A weight_shape other than the codes', scales that are not finite, or groups that are no
            permutation.
    """
    shape = parts["weight_shape"]
    said = read_array(shape).tolist()
    if said != [stored.n, stored.k]:
        raise WeightError(
            f"{shape.file}: tensor {shape.name} must be [{stored.n}, {stored.k}], by the shape of "
            f"weight_packed (got {said})"
        )
    zeros, g_idx = parts.get("weight_zero_point"), parts.get("weight_g_idx") if wanted.ordered else None
    return compressed_tensors.read(
        read_named(parts["weight_packed"]),
        read_named(parts["weight_scale"]),
        None if zeros is None else read_named(zeros),
        None if g_idx is None else read_named(g_idx),
        element=wanted.weight,
        k=stored.k,
        group_size=wanted.group_size,
    )


def read_int_quantized(parts: Parts, stored: Stored, wanted: WeightFormat) -> Affine:
    """Read a module; the one scale of a tensor is repeated for each channel.

    Raises:
        WeightError: Scales that are not finite.
    """
    zeros = None
    if "weight_zero_point" in parts:
        zeros = _spread(_shift(read_array(parts["weight_zero_point"])), stored.n)
    codes = _shift(read_array(parts["weight"])).T
    scales = _spread(read_scales(parts["weight_scale"]), stored.n)
    return Affine(wanted.weight, codes, scales, zeros, wanted.group_size)


def _shift(signed: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    shifted: npt.NDArray[np.uint8] = signed.view(np.uint8) ^ _SIGN
    return shifted


def _spread(values: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return what is stored for a tensor, or for each channel and group, as [groups, n]."""
    return np.repeat(values.reshape(1, 1), n, axis=1) if values.size == 1 else values.reshape(n, -1).T
