"""compressed-tensors' integers: packed in words of consecutive k (pack-quantized), or as s8 (int-quantized).

Source: compressed-tensors. Packed codes and zero points are stored plus 2^(bits - 1); zero points are packed
along n. A weight is (code - zero point) * scale, signed or not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import WeightError
from ...formats.affine import Affine
from ...formats.stored import read_codes, read_zeros
from ...models import WeightFormat
from ..data import read_array
from ..stored import Parts, Stored
from .checks import read_scales
from .order import Order, read_order

_SIGN = np.uint8(0x80)  # two's complement + 128, in 8 bits


def read_pack_quantized(parts: Parts, stored: Stored, wanted: WeightFormat) -> tuple[Affine, Order | None]:
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
    codes = read_codes(read_array(parts["weight_packed"]), "compressed_tensors", stored.bits)
    zeros = None
    if "weight_zero_point" in parts:
        packed = read_array(parts["weight_zero_point"])
        zeros = read_zeros(packed, "compressed_tensors", stored.bits)[:, : stored.n]
    order = None
    if "weight_g_idx" in parts and wanted.ordered:
        order = read_order(parts["weight_g_idx"], stored.k, wanted.group_size)
    if order is not None:
        codes = codes[order]
    scales = read_scales(parts["weight_scale"]).T
    return Affine(wanted.weight, codes, scales, zeros, wanted.group_size), order


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
    rows = values.reshape(1, 1) if values.size == 1 else values.reshape(n, -1).T
    return np.broadcast_to(rows, (len(rows), n))
