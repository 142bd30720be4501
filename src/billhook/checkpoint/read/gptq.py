"""GPTQ, both versions, perhaps with act-order."""

from __future__ import annotations

from ...formats import gptq, host
from ...formats.order import Order, refuse_order
from ...models import WeightFormat
from ..stored import Parts, Stored
from .checks import read_named


def read_gptq(parts: Parts, stored: Stored, wanted: WeightFormat) -> tuple[host.Parts, Order | None]:
    """Read a module; with act-order, its rows are put into the order of their groups.

    Raises:
        WeightError: Zero points that are not those of symmetric weights although the config says so, scales
            that are not finite, or groups that are no permutation, or not in order although the config says
            so.
    """
    g_idx = read_named(parts["g_idx"]) if "g_idx" in parts else None
    value, order = gptq.read(
        read_named(parts["qweight"]),
        read_named(parts["scales"]),
        read_named(parts["qzeros"]),
        g_idx,
        element=wanted.weight,
        group_size=wanted.group_size,
        version=1 if stored.format == "gptq" else 2,
    )
    if g_idx is not None and not wanted.ordered:
        refuse_order(g_idx, order, "the config says desc_act = false")
    return value, order
