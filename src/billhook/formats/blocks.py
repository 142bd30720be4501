"""Blocks of weights that share one scale: counted, split and spread alike for every format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightError


@dataclass(frozen=True)
class Block:
    """The weights that share one scale; the last block of an axis may be cut short.

    Args:
        k: Extent along the input features; -1 for all of them.
        n: Extent along the output features; -1 for all of them.
    """

    k: int
    n: int = 1

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of weights [.., k, n]."""
        *experts, k, n = shape
        return (*experts, count_groups(k, self.k), count_groups(n, self.n))

    def __str__(self) -> str:
        return "x".join("all" if extent == -1 else str(extent) for extent in (self.k, self.n))


def count_groups(extent: int, size: int) -> int:
    """Return the number of scales along an axis: ceil(extent / size), or 1 if one serves the whole axis.

    Raises:
        WeightError: size is neither positive nor -1.
    """
    if size == -1:
        return 1
    if size <= 0:
        raise WeightError(f"group_size must be positive, or -1 for channel scales (got {size})")
    return -(-extent // size)


def read_weights(weight: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return weights as float32, checked.

    Raises:
        WeightError: Not [k, n] or [experts, k, n], an empty axis, or a value that is not finite in float32.
    """
    with np.errstate(over="ignore"):
        values = np.asarray(weight, dtype=np.float32)
    if values.ndim not in (2, 3) or values.size == 0:
        raise WeightError(
            f"weights must be [k, n] or [experts, k, n], no axis empty (got shape {values.shape})"
        )
    if not np.isfinite(values).all():
        raise WeightError("weights must be finite; found NaN or infinity")
    return values


def check_codes(codes: npt.NDArray[Any], largest: int) -> None:
    """Refuse codes that are not uint8 [.., k, n] or exceed `largest`.

    Raises:
        WeightError: As said; the message names what was found.
    """
    if codes.dtype != np.uint8 or codes.ndim not in (2, 3):
        raise WeightError(f"codes must be uint8 [.., k, n], 2 or 3 axes (got {codes.dtype} {codes.shape})")
    if codes.size and codes.max() > largest:
        raise WeightError(f"codes must be 0 to {largest} (got {codes.max()})")


def check_whole_groups(k: int, size: int, name: str) -> None:
    """Refuse a k that a format without partial groups cannot hold.

    Raises:
        WeightError: k is not a multiple of the group.
    """
    if k % size:
        raise WeightError(
            f"{name} needs k in whole groups of {size} (got k={k}); "
            f"pad k with zeros to {count_groups(k, size) * size}"
        )


def split(weight: npt.NDArray[np.float32], block: Block) -> npt.NDArray[np.float32]:
    """Return weights [.., k, n] as [.., blocks of k, k of a block, blocks of n, n of a block].

    Blocks that are cut short are filled with zeros, which change no range that holds zero.
    """
    *experts, k, n = weight.shape
    *_, rows, columns = block.scale_shape(weight.shape)
    height, width = (k if block.k == -1 else block.k), (n if block.n == -1 else block.n)
    if (rows * height, columns * width) != (k, n):
        padded = np.zeros((*experts, rows * height, columns * width), weight.dtype)
        padded[..., :k, :n] = weight
        weight = padded
    return weight.reshape(*experts, rows, height, columns, width)


def find_largest(weight: npt.NDArray[np.float32], block: Block) -> npt.NDArray[np.float64]:
    """Return the largest magnitude of each block [.., blocks of k, blocks of n]."""
    largest: npt.NDArray[np.float64] = np.abs(split(weight, block)).max(axis=(-3, -1)).astype(np.float64)
    return largest


def spread(scales: npt.NDArray[Any], block: Block, k: int, n: int) -> npt.NDArray[np.float64]:
    """Return what belongs to each block at each of its weights: float64 [.., k, n]."""
    exact = scales.astype(np.float64)
    if block.n != 1:
        exact = np.repeat(exact, n if block.n == -1 else block.n, axis=-1)[..., :n]
    return np.repeat(exact, k if block.k == -1 else block.k, axis=-2)[..., :k, :]


def divide(weight: npt.NDArray[np.float32], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return weight / step, 0 where the step is 0.

    In float64 the quotient of a float32 weight never lands on a tie of a grid that it is not on, so that
    rounding it to the grid is rounding once.
    """
    quotient = np.zeros(np.broadcast_shapes(weight.shape, steps.shape))
    return np.divide(weight, steps, out=quotient, where=steps != 0)


def round_product(
    left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return left * right, multiplied in float64 and rounded to `dtype` once; beyond its range, infinite."""
    with np.errstate(over="ignore"):
        product: npt.NDArray[Any] = (left * right).astype(dtype)
    return product
