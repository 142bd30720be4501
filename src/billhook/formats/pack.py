"""Packed weights: the one layout that every kernel family reads (docs/layout.md, "Packed weights").

A row of the packed matrix is an output feature n, a column an input feature k. Both axes split into bits of
meaning; packing only reorders those axes, then joins eight nibbles or four bytes into a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import STRIP
from ..dtypes import DType
from ..errors import WeightError
from .blocks import check_codes, count_groups

# What an axis splits into, slowest first: n = 64 s + 16 i + 8 h + g, k = 64 b + 32 u + 16 v + 8 q + 2 t + o.
_N_SPLIT = (4, 2, 8)  # i h g
_K_SPLIT = (2, 2, 2, 4, 2)  # u v q t o
# Where the parts (s, i, h, g, b, u, v, q, t, o) go; lane = 4 g + t.
_CODE_AXES = {
    4: (0, 4, 1, 3, 8, 5, 6, 9, 7, 2),  # word 2 u + v of the lane, nibble 4 o + 2 q + h of the word
    8: (
        0,
        4,
        1,
        5,
        3,
        8,
        6,
        2,
        9,
        7,
    ),  # half u of the row, word 2 v + h of the lane, byte 2 o + q of the word
}
# Where whole words' parts go: (s, i, g, b, u, v, t) of 4 bits, (s, i, h, g, b, u, v, t) of 8 bits.
_WORD_AXES = {4: (0, 3, 1, 2, 6, 4, 5), 8: (0, 4, 1, 5, 3, 7, 6, 2)}
# (s, i, h, g, group) -> (s, group, g, i, h).
_SCALE_AXES = (0, 4, 3, 1, 2)
CODE_BLOCK = {
    4: (4, 32, 4),
    8: (4, 2, 32, 4),
}  # words of one 64 x 64 block: i, lane, word; i, half, lane, word


def count_strips(extent: int) -> int:
    """Return how many strips of 64 cover `extent`."""
    return -(-extent // STRIP)


def count_packed_groups(k: int, group_size: int) -> int:
    """Return how many scales along k are stored: those of the padded k, so that no block lacks one."""
    return count_groups(count_strips(k) * STRIP, group_size)


def code_shape(n: int, k: int, bits: int) -> tuple[int, ...]:
    """Return the shape of the packed codes of one weight."""
    return (count_strips(n), count_strips(k), *CODE_BLOCK[bits])


def scale_shape(n: int, k: int, group_size: int) -> tuple[int, ...]:
    """Return the shape of the packed scales, and zero points, of one weight."""
    return (count_strips(n), count_packed_groups(k, group_size), STRIP)


def pack_codes(codes: npt.NDArray[np.uint8], element: DType) -> npt.NDArray[np.uint32]:
    """Pack codes of 4 or 8 bits.

    Args:
        codes: uint8 [.., k, n], 0 to 15 or 0 to 255.
        element: What they are; padding holds the code that stands for zero.

    Returns:
        uint32 [.., n64, k64, 4, 32, 4] or [.., n64, k64, 4, 2, 32, 4], contiguous.

    Raises:
        WeightError: Not uint8, not two or three axes, or a code above 15 of a 4-bit type.
    """
    check_codes(codes, 2**element.bits - 1)
    if codes.ndim == 3:
        return _stack([pack_codes(one, element) for one in codes])
    k, n = codes.shape
    strips, blocks = count_strips(n), count_strips(k)
    rows = codes.T
    if rows.shape != (strips * STRIP, blocks * STRIP):
        rows = np.full((strips * STRIP, blocks * STRIP), element.bias, np.uint8)
        rows[:n, :k] = codes.T
    # Neighbours are joined before anything is moved: whole words move, whichever order codes have in memory.
    parts = rows.reshape(strips, *_N_SPLIT, blocks, *_K_SPLIT)
    if element.bits == 4:
        parts = _join(parts, 2, np.uint8, 4)  # h; then s i g b u v q t o
    pairs = _join(parts, -3, np.uint16, 8)  # q
    words = _join(pairs, -1, np.uint32, 16)  # o
    ordered = np.ascontiguousarray(words.transpose(_WORD_AXES[element.bits]))
    return ordered.reshape(code_shape(n, k, element.bits))


def _join(parts: npt.NDArray[Any], axis: int, dtype: type, bits: int) -> npt.NDArray[Any]:
    """Return what two neighbours along an axis are together, the first in the lower bits."""
    low, high = np.moveaxis(parts, axis, 0)
    joined: npt.NDArray[Any] = np.left_shift(high, bits, dtype=dtype)
    joined |= low
    return joined


def unpack_codes(packed: npt.NDArray[np.uint32], k: int, n: int, element: DType) -> npt.NDArray[np.uint8]:
    """Return the codes [.., k, n] that `pack_codes` packed.

    Args:
        packed: uint32, as `pack_codes` returns.
        k: Input features.
        n: Output features.
        element: What the codes are.

    Raises:
        WeightError: The words do not have the shape of an [.., k, n] weight.
    """
    want = code_shape(n, k, element.bits)
    if packed.dtype != np.uint32 or packed.shape not in {want, (*packed.shape[:1], *want)}:
        raise WeightError(
            f"packed {element} codes of n={n}, k={k} must be uint32 {want} "
            f"(got {packed.dtype} {packed.shape})"
        )
    if packed.ndim > len(want):
        return _stack([unpack_codes(one, k, n, element) for one in packed])
    axes = _CODE_AXES[element.bits]
    split = (want[0], *_N_SPLIT, want[1], *_K_SPLIT)
    parts = np.ascontiguousarray(packed).view(np.uint8)
    if element.bits == 4:
        parts = np.stack([parts & 15, parts >> 4], axis=-1)
    parts = parts.reshape([split[axis] for axis in axes]).transpose(np.argsort(axes))
    return np.ascontiguousarray(parts.reshape(want[0] * STRIP, want[1] * STRIP)[:n, :k].T)


def order_folded(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the codes of a folded weight in the order in which `pack_codes` is to take them.

    They move within 16 x 16 of them, so that the word of a lane holds four neighbours along k of two rows.

    Args:
        codes: uint8 [.., k, n], both multiples of 16.
    """
    return _swap_bits(codes, (4, 2, 2))


def reorder_folded(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the codes [.., k, n] that `order_folded` moved."""
    return _swap_bits(codes, (2, 4, 2))


def _swap_bits(codes: npt.NDArray[np.uint8], split: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Swap parts of n = 16 i + 8 h + g with parts of k = 16 j + 4 t + 2 b + d: h with d, and t with b.

    Args:
        codes: uint8 [.., k, n].
        split: What 16 of k split into: (t, b, d) on the way in, (b, t, h) on the way back.
    """
    *experts, k, n = codes.shape
    rows = codes.swapaxes(-1, -2).reshape(-1, 2, 8, k // 16, *split)  # i h g j t b d
    swapped = rows.transpose(0, 6, 2, 3, 5, 4, 1).reshape(*experts, n, k)
    return np.swapaxes(swapped, -1, -2)


def pack_scales(scales: npt.NDArray[Any], k: int, group_size: int) -> npt.NDArray[Any]:
    """Pack scales, or what else is one for each group of a column, such as zero points.

    Args:
        scales: [.., groups, n], of 8 or 16 bits.
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
    want = scale_shape(n, k, group_size)
    padded = np.zeros((want[0] * STRIP, want[1]), scales.dtype)
    padded[:n, :groups] = scales.T
    ordered = padded.reshape(want[0], *_N_SPLIT, want[1]).transpose(_SCALE_AXES)
    return np.ascontiguousarray(ordered).reshape(want)


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
    want = scale_shape(n, k, group_size)
    if packed.ndim not in (3, 4) or packed.shape[-3:] != want:
        raise WeightError(f"packed scales of n={n}, k={k} must be {want} (got {packed.shape})")
    if packed.ndim == 4:
        return _stack([unpack_scales(one, k, n, group_size) for one in packed])
    split = (want[0], *_N_SPLIT, want[1])
    ordered = packed.reshape([split[axis] for axis in _SCALE_AXES]).transpose(np.argsort(_SCALE_AXES))
    return np.ascontiguousarray(
        ordered.reshape(want[0] * STRIP, want[1])[:n, : count_groups(k, group_size)].T
    )


def _stack(experts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if not experts:
        raise WeightError("a Mixture-of-Experts weight must hold at least one expert (got 0)")
    return np.stack(experts)
