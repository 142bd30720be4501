"""AutoAWQ: words of eight consecutive n, interleaved, with zero points stored as they are.

Source: the tensors of AutoAWQ's GEMM version (`qweight`, `qzeros`, `scales`).
"""

from __future__ import annotations

from ...formats import host
from ...formats.stored import Words, read_zeros
from ...models import WeightFormat
from ..data import read_array
from ..stored import Parts, Stored
from .checks import read_scales


def read_awq(parts: Parts, stored: Stored, wanted: WeightFormat) -> host.Parts:
    """Read a module.

    Raises:
        WeightError: Scales that are not finite, or a width other than 4 bits.
    """
    return host.Parts(
        wanted.weight.name,
        Words(read_array(parts["qweight"]), "awq", stored.bits),
        read_scales(parts["scales"]),
        read_zeros(read_array(parts["qzeros"]), "awq", stored.bits),
        None,
        wanted.group_size,
    )
