"""Packed weights: the one layout that every kernel family reads (docs/layout.md, "Packed weights").

A row of the packed matrix is an output feature n, a column an input feature k. Both axes split into bits of
meaning; packing only reorders those axes, then joins eight nibbles into a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import STRIP
from ..errors import WeightError
from .u4b8 import ZERO_CODE, count_groups

# n = 64 s + 16 i + 8 h + g and k = 64 b + 16 j + 8 q + 2 t + o: what an axis splits into, slowest first.
_N_SPLIT = (4, 2, 8)  # i h g
_K_SPLIT = (4, 2, 4, 2)  # j q t o
# (s, i, h, g, b, j, q, t, o) -> (s, b, i, g, t, j, o, q, h): lane = 4 g + t, nibble = 4 o + 2 q + h.
CODE_AXES = (0, 4, 1, 3, 7, 5, 8, 6, 2)
# (s, i, h, g, group) -> (s, group, g, i, h).
SCALE_AXES = (0, 4, 3, 1, 2)
CODE_BLOCK = (4, 32, 4)  # i, lane, j: the words of one 64 x 64 block


def count_strips(extent: int) -> int:
    """Return how many strips of 64 cover `extent`."""
    return -(-extent // STRIP)


def count_packed_groups(k: int, group_size: int) -> int:
    """Return how many scales along k are stored: those of the padded k, so that no block lacks one."""
    return count_groups(count_strips(k) * STRIP, group_size)


def code_split(n: int, k: int) -> tuple[int, ...]:
    """Return the shape that `CODE_AXES` reorders: padded n and k, split."""
    return (count_strips(n), *_N_SPLIT, count_strips(k), *_K_SPLIT)


def scale_split(n: int, groups: int) -> tuple[int, ...]:
    """Return the shape that `SCALE_AXES` reorders: padded n, split, and the groups."""
    return (count_strips(n), *_N_SPLIT, groups)


def pack_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Pack 4-bit codes.

    Args:
        codes: uint8 [.., k, n], 0 to 15.

    Returns:
        uint32 [.., n64, k64, 4, 32, 4], contiguous; padding holds the code of zero.

    Raises:
        WeightError: Not uint8, not two or three axes, or a code above 15.
    """
    if codes.dtype != np.uint8 or codes.ndim not in (2, 3):
        raise WeightError(f"codes must be uint8 [k, n] or [experts, k, n] (got {codes.dtype} {codes.shape})")
    if codes.size and codes.max() > 15:
        raise WeightError(f"4-bit codes must be 0 to 15 (got {codes.max()})")
    if codes.ndim == 3:
        return _stack([pack_codes(one) for one in codes])
    k, n = codes.shape
    padded = np.full((count_strips(n) * STRIP, count_strips(k) * STRIP), ZERO_CODE, np.uint8)
    padded[:n, :k] = codes.T
    nibbles = padded.reshape(code_split(n, k)).transpose(CODE_AXES)
    packed = np.ascontiguousarray(nibbles[..., 0] | nibbles[..., 1] << 4)
    return packed.reshape(-1).view("<u4").reshape(count_strips(n), count_strips(k), *CODE_BLOCK)


def unpack_codes(packed: npt.NDArray[np.uint32], k: int, n: int) -> npt.NDArray[np.uint8]:
    """Return the codes [.., k, n] that `pack_codes` packed.

    Args:
        packed: uint32 [.., n64, k64, 4, 32, 4].
        k: Input features.
        n: Output features.

    Raises:
        WeightError: The words do not have the shape of an [.., k, n] weight.
    """
    want = (count_strips(n), count_strips(k), *CODE_BLOCK)
    if packed.dtype != np.uint32 or packed.shape[-5:] != want or packed.ndim not in (5, 6):
        raise WeightError(
            f"packed codes of n={n}, k={k} must be uint32 {want} (got {packed.dtype} {packed.shape})"
        )
    if packed.ndim == 6:
        return _stack([unpack_codes(one, k, n) for one in packed])
    split = code_split(n, k)
    pairs = np.ascontiguousarray(packed).view(np.uint8).reshape([split[axis] for axis in CODE_AXES[:-1]])
    nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1)
    rows = nibbles.transpose(np.argsort(CODE_AXES)).reshape(count_strips(n) * STRIP, count_strips(k) * STRIP)
    return np.ascontiguousarray(rows[:n, :k].T)


def pack_scales(scales: npt.NDArray[Any], k: int, group_size: int) -> npt.NDArray[Any]:
    """Pack scales.

    Args:
        scales: f16 or bf16 [.., groups, n].
        k: Input features of the weight.
        group_size: Weights along k that share one scale; -1 for channel scales.

    Returns:
        The same type, [.., n64, padded groups, 64], contiguous; padding holds 0.

    Raises:
        WeightError: Not two or three axes, or not one row per group.
    """
    if scales.ndim not in (2, 3):
        raise WeightError(f"scales must be [groups, n] or [experts, groups, n] (got {scales.shape})")
    if scales.ndim == 3:
        return _stack([pack_scales(one, k, group_size) for one in scales])
    groups, n = scales.shape
    if groups != count_groups(k, group_size):
        raise WeightError(
            f"k={k} in groups of {group_size} has {count_groups(k, group_size)} scales (got {groups})"
        )
    padded = np.zeros((count_strips(n) * STRIP, count_packed_groups(k, group_size)), scales.dtype)
    padded[:n, :groups] = scales.T
    groups = padded.shape[1]
    ordered = padded.reshape(scale_split(n, groups)).transpose(SCALE_AXES)
    return np.ascontiguousarray(ordered).reshape(count_strips(n), groups, STRIP)


def unpack_scales(packed: npt.NDArray[Any], k: int, n: int, group_size: int) -> npt.NDArray[Any]:
    """Return the scales [.., groups, n] that `pack_scales` packed.

    Args:
        packed: [.., n64, padded groups, 64].
        k: Input features.
        n: Output features.
        group_size: Weights along k that share one scale; -1 for channel scales.

    Raises:
        WeightError: The array does not have the shape of scales of an [.., k, n] weight.
    """
    groups = count_packed_groups(k, group_size)
    want = (count_strips(n), groups, STRIP)
    if packed.ndim not in (3, 4) or packed.shape[-3:] != want:
        raise WeightError(f"packed scales of n={n}, k={k} must be {want} (got {packed.shape})")
    if packed.ndim == 4:
        return _stack([unpack_scales(one, k, n, group_size) for one in packed])
    split = scale_split(n, groups)
    ordered = packed.reshape([split[axis] for axis in SCALE_AXES]).transpose(np.argsort(SCALE_AXES))
    return np.ascontiguousarray(
        ordered.reshape(count_strips(n) * STRIP, groups)[:n, : count_groups(k, group_size)].T
    )


def _stack(experts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if not experts:
        raise WeightError("a Mixture-of-Experts weight must hold at least one expert (got 0)")
    return np.stack(experts)
