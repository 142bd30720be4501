"""The order of input features that a checkpoint's groups mean (GPTQ's act-order)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import WeightError
from ...formats.blocks import count_groups
from ..data import read_array
from ..header import Tensor
from .checks import refuse

Order: TypeAlias = npt.NDArray[np.int32]


def read_order(g_idx: Tensor, k: int, group_size: int) -> Order | None:
    """Return the order of input features in which each group is a run of `group_size`.

    Args:
        g_idx: The group of each input feature [k]; compressed-tensors fills it with -1 for the usual order.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for channel scales.

    Returns:
        int32 [k], a permutation: row i of the reordered weight is row `order[i]` of the stored one; None if
        that is the order they are in.

    Raises:
        WeightError: A group that does not exist, or one that has too many or too few input features.
    """
    groups = read_array(g_idx)
    count = count_groups(k, group_size)
    if (groups == -1).all():
        return None
    refuse(g_idx, groups, (groups < 0) | (groups >= count), f"groups must be 0 to {count - 1}")
    _check_sizes(g_idx, groups, k, group_size, count)
    order = np.argsort(groups, kind="stable").astype(np.int32)
    return None if (order == np.arange(k)).all() else order


def _check_sizes(g_idx: Tensor, groups: npt.NDArray[Any], k: int, group_size: int, count: int) -> None:
    """Refuse groups that are not full; the last one may be shorter."""
    size = k if group_size == -1 else group_size
    wanted = np.full(count, size)
    wanted[-1] = k - size * (count - 1)
    found = np.bincount(groups, minlength=count)
    wrong = np.flatnonzero(found != wanted)
    if len(wrong):
        group = int(wrong[0])
        raise WeightError(
            f"{g_idx.file}: tensor {g_idx.name} puts {found[group]} of {k} input features into group "
            f"{group}, which has {wanted[group]} by group_size {group_size}; it is no permutation into groups"
        )
