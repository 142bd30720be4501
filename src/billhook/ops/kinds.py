"""Packed formats beside types of activations: what the operators ask of tensors, looked up once a call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import GemmTypes
from ..formats.pack import CODE_BLOCK
from ..weights import FORMATS
from .tensors import DTYPES, NARROW_DTYPES


class Kind(NamedTuple):
    """A packed format and the activations that multiply it.

    Args:
        types: Element types of the GEMM.
        names: Names of the types of activations, weights, scales and D, as in `dispatch.provider.Request`.
        output: Type of D and of bias.
        narrow: Whether activations have 8 bits, and a scale for each row.
        zeros: Whether there are zero points.
        global_scales: Whether there are global scales.
        block_axis: The axis of the packed codes that counts blocks of 64 along k, from the last.
    """

    types: GemmTypes
    names: tuple[str, str, str, str]
    output: torch.dtype
    narrow: bool
    zeros: bool
    global_scales: bool
    block_axis: int


def _kinds() -> dict[tuple[str, torch.dtype, torch.dtype], Kind]:
    """Return kinds by format and the types of the tensors of activations and scales."""
    found = {}
    for held in FORMATS.values():
        for c in held.activations:
            scales = torch.uint8 if held.scale else DTYPES[c]
            for a in (c, *held.narrow_activations):
                types = GemmTypes(a, held.weight, held.scale_type(c), c)
                narrow = a != c
                found[held.name, NARROW_DTYPES[a] if narrow else DTYPES[a], scales] = Kind(
                    types=types,
                    names=(types.a.name, types.b.name, types.s.name, types.c.name),
                    output=DTYPES[c],
                    narrow=narrow,
                    zeros=held.weight.zero_point,
                    global_scales=held.global_scale,
                    block_axis=-len(CODE_BLOCK[held.weight.bits]) - 1,
                )
    return found


KINDS = _kinds()
