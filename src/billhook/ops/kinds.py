"""Packed formats beside types of activations: what the operators ask of tensors, looked up once a call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import GemmTypes
from ..formats.pack import CODE_BLOCK
from ..formats.packed import FORMATS
from .tensors import DTYPES


class Kind(NamedTuple):
    """A packed format and the activations that multiply it.

    Args:
        types: Element types of the GEMM; the output has the activations' type.
        names: Names of the types of activations, weights and scales, as in `dispatch.provider.Request`.
        scales: Type of the tensor of scales, and of zero points.
        zeros: Whether there are zero points.
        global_scales: Whether there are global scales.
        block_axis: The axis of the packed codes that counts blocks of 64 along k, from the last.
    """

    types: GemmTypes
    names: tuple[str, str, str]
    scales: torch.dtype
    zeros: bool
    global_scales: bool
    block_axis: int


def _kinds() -> dict[tuple[str, torch.dtype], Kind]:
    found = {}
    for held in FORMATS.values():
        for a in held.activations:
            types = GemmTypes(a, held.weight, held.scale or a, a)
            found[held.name, DTYPES[a]] = Kind(
                types=types,
                names=(types.a.name, types.b.name, types.s.name),
                scales=torch.uint8 if held.scale else DTYPES[a],
                zeros=held.weight.zero_point,
                global_scales=held.global_scale,
                block_axis=-len(CODE_BLOCK[held.weight.bits]) - 1,
            )
    return found


KINDS = _kinds()
