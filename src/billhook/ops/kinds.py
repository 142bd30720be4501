"""Packed formats beside types of activations: what the operators ask of tensors, looked up once a call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import GemmTypes
from ..formats.pack import CODE_BLOCK
from ..weights import FORMATS
from .arguments import output_type
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
        channel_scales: Whether the weight has channel scales beside those of groups.
        block_axis: The axis of the packed codes that counts blocks of 64 along k, from the last.
    """

    types: GemmTypes
    names: tuple[str, str, str, str]
    output: torch.dtype
    narrow: bool
    zeros: bool
    global_scales: bool
    channel_scales: bool
    block_axis: int


def _kinds() -> dict[tuple[str, torch.dtype, torch.dtype, torch.dtype], Kind]:
    """Return kinds by format and the types of activations, scales and D as tensors."""
    found = {}
    for held in FORMATS.values():
        for c in held.outputs:
            scales = torch.uint8 if held.scale else DTYPES[c]
            for a in (*(one for one in held.activations if one == c), *held.narrow_activations):
                types = GemmTypes(a, held.weight, held.scale_type(c), c)
                narrow = a != c
                found[held.name, NARROW_DTYPES[a] if narrow else DTYPES[a], scales, DTYPES[c]] = Kind(
                    types=types,
                    names=(types.a.name, types.b.name, types.s.name, types.c.name),
                    output=DTYPES[c],
                    narrow=narrow,
                    zeros=held.weight.zero_point,
                    global_scales=held.global_scale,
                    channel_scales=held.folded,
                    block_axis=-len(CODE_BLOCK[held.weight.bits]) - 1,
                )
    return found


KINDS = _kinds()


def find_kind(
    format: str,  # noqa: A002 - as in formats.host
    activations: torch.dtype,
    scales: torch.dtype,
    output: torch.dtype | None = None,
) -> Kind | None:
    """Return the kind of GEMM that tensors of these types make; None if there is none.

    Args:
        format: The packed format.
        activations: Type of A.
        scales: Type of the weight's scales, as a tensor.
        output: Type of D; the usual one if None.
    """
    return KINDS.get((format, activations, scales, output or output_type(activations, scales)))
