"""MoE routing on the host: the same answer as `cuda/billhook/kernel/route.cuh`, for CPU tensors and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def capacity(rows: int, num_experts: int, block_m: int) -> int:
    """Return the most blocks that any routing needs: each expert may leave one partly empty.

    Args:
        rows: (token, slot) rows.
        num_experts: Number of experts.
        block_m: Rows of one block.
    """
    return min(rows, (rows + num_experts * (block_m - 1)) // block_m)


def route(
    topk_ids: npt.ArrayLike, num_experts: int, block_m: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
    """Sort (token, slot) rows by the expert they visit, in blocks that each belong to one expert.

    Args:
        topk_ids: The expert of each row, any shape; ids outside the experts are dropped.
        num_experts: Number of experts.
        block_m: Rows of one block.

    Returns:
        sorted_token_ids, int32 [blocks * block_m]: row numbers, ascending per expert; the row count pads;
        expert_ids, int32 [blocks];
        the length of sorted_token_ids.
    """
    ids = np.asarray(topk_ids).reshape(-1)
    pieces: list[npt.NDArray[Any]] = [np.zeros(0, np.int32)]
    experts: list[npt.NDArray[Any]] = [np.zeros(0, np.int32)]
    for expert in range(num_experts):
        rows = np.flatnonzero(ids == expert).astype(np.int32)
        blocks = -(-len(rows) // block_m)
        pieces.append(np.pad(rows, (0, blocks * block_m - len(rows)), constant_values=len(ids)))
        experts.append(np.full(blocks, expert, np.int32))
    token_ids = np.concatenate(pieces)
    return token_ids, np.concatenate(experts), len(token_ids)
