"""Keep few of many kernels such that one of them is left for everything that is wanted."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

_Kept = TypeVar("_Kept", bound=Hashable)


def keep_few(wants: Mapping[tuple[_Kept, ...], int], order: Sequence[_Kept]) -> list[_Kept]:
    """Return few of `order` such that each want has one of those that would do for it.

    What alone would do is kept first; then, again and again, what does for the most that has none yet; at
    last what became needless is dropped, that which does for the least first. That is not always the fewest,
    which would take as long to find as trying all sets may take.

    Args:
        wants: Those that would do for a want, at least one -> how much the want counts.
        order: All of them; the first of equals is kept.
    """
    kept = {one for enough in wants if len(enough) == 1 for one in enough}
    open_wants = {enough: count for enough, count in wants.items() if kept.isdisjoint(enough)}
    while open_wants:
        gains = _gains(open_wants, order)
        kept.add(max(order, key=gains.__getitem__))
        open_wants = {enough: count for enough, count in open_wants.items() if kept.isdisjoint(enough)}
    gains = _gains(wants, order)
    for one in sorted((one for one in reversed(order) if one in kept), key=gains.__getitem__):
        if all(not kept.isdisjoint(set(enough) - {one}) for enough in wants):
            kept.remove(one)
    return [one for one in order if one in kept]


def _gains(wants: Mapping[tuple[_Kept, ...], int], order: Sequence[_Kept]) -> dict[_Kept, int]:
    """Return how much each would do for."""
    return {one: sum(count for enough, count in wants.items() if one in enough) for one in order}
