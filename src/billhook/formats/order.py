"""The order of input features that the groups of a checkpoint mean (GPTQ's act-order)."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import WeightError
from .blocks import count_groups
from .named import Named

Order: TypeAlias = npt.NDArray[np.int32]


def find_order(g_idx: Named, k: int, group_size: int) -> Order | None:
    """Return the order of input features in which each group is a run of `group_size`.

    Args:
        g_idx: The group of each input feature, integers [k]; compressed-tensors fills it with -1 for the
            usual order.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for channel scales.

    Returns:
        int32 [k], a permutation: row i of the reordered weight is row `order[i]` of the stored one; None if
        that is the order they are in.

    Raises:
        WeightError: A group that does not exist, or one that has too many or too few input features.
    """
    groups = g_idx.values
    if groups.dtype.kind != "i" or groups.shape != (k,):
        raise WeightError(
            f"{g_idx.name} must be integers, one entry for each of k={k} input features "
            f"(got {groups.dtype} {groups.shape})"
        )
    count = count_groups(k, group_size)
    if (groups == -1).all():
        return None
    g_idx.refuse((groups < 0) | (groups >= count), f"groups must be 0 to {count - 1}")
    _check_sizes(g_idx, group_size, count)
    order = np.argsort(groups, kind="stable").astype(np.int32)
    return None if (order == np.arange(k)).all() else order


def refuse_order(g_idx: Named, order: Order | None, why: str) -> None:
    """Refuse input features that are not in the order of their groups.

    Args:
        g_idx: The group of each input feature.
        order: What `find_order` found.
        why: Why they must be, in words.

    Raises:
        WeightError: They are not; names the first that is not in its place.
    """
    if order is not None:
        g_idx.refuse(order != np.arange(len(order)), f"groups must be in order, since {why}")


def _check_sizes(g_idx: Named, group_size: int, count: int) -> None:
    """Refuse groups that are not full; the last one may be shorter."""
    k = len(g_idx.values)
    size = k if group_size == -1 else group_size
    wanted = np.full(count, size)
    wanted[-1] = k - size * (count - 1)
    found = np.bincount(g_idx.values, minlength=count)
    wrong = np.flatnonzero(found != wanted)
    if len(wrong):
        group = int(wrong[0])
        raise WeightError(
            f"{g_idx.name} puts {found[group]} of {k} input features into group {group}, which has "
            f"{wanted[group]} by group_size {group_size}; it is no permutation into groups"
        )
