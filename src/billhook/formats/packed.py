"""Packed weights of every format: found by name, number or types, and the tensors that each has.

`PackedArrays` is the numpy twin of `ops.PackedWeight`; docs/layout.md, "Packed weights", draws the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import GemmTypes
from ..errors import WeightError
from ..weights import FORMATS, PackedFormat
from . import pack as order
from .elements import numpy_dtype

ALIGNMENT = 16  # n and k are multiples of it


def find_format(name: str) -> PackedFormat:
    """Return the format called `name`.

    Raises:
        WeightError: No such format; the message lists those that exist.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise WeightError(
            f"no kernel reads weights of format {name!r}; known: {', '.join(FORMATS)}"
        ) from None


def find_packed(types: GemmTypes) -> PackedFormat:
    """Return the format of the weights of a GEMM.

    Raises:
        WeightError: No format has such weights and scales beside such activations.
    """
    for one in FORMATS.values():
        known = types.a in one.narrow_activations or (types.a == types.c and types.a in one.activations)
        if known and types.c in one.outputs and (types.b, types.s) == (one.weight, one.scale_type(types.c)):
            return one
    raise WeightError(f"no packed weights have the types {types}")


def read_number(number: int) -> PackedFormat:
    """Return the format that a state dict's number means.

    Raises:
        WeightError: This version reads no such format.
    """
    for one in FORMATS.values():
        if one.number == number:
            return one
    known = ", ".join(f"{one.number} ({one.name})" for one in FORMATS.values())
    raise WeightError(f"weight has the format number {number}; kernels read {known}: pack it again")


def tensor_shapes(
    held: PackedFormat, n: int, k: int, group_size: int, num_experts: int
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors of a packed weight.

    Args:
        held: Its format.
        n: Output features.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for channel scales.
        num_experts: 0 for a dense layer.

    Raises:
        WeightError: n or k not a positive multiple of 16, or a group size that the format does not have.
    """
    if n <= 0 or k <= 0 or n % ALIGNMENT or k % ALIGNMENT:
        raise WeightError(f"n and k must be multiples of {ALIGNMENT} (got n={n}, k={k}); pad with zeros")
    if group_size not in held.group_sizes:
        known = " or ".join(map(str, held.group_sizes))
        raise WeightError(f"{held.name} weights have group_size {known} (got {group_size})")
    experts = (num_experts,) if num_experts else ()
    scales = (*experts, *order.scale_shape(n, k, group_size))
    shapes = {"codes": (*experts, *order.code_shape(n, k, held.weight.bits)), "scales": scales}
    if held.weight.zero_point:
        shapes["zeros"] = scales
    if held.global_scale:
        shapes["global_scales"] = (max(1, num_experts),)
    if held.folded:
        shapes["channel_scales"] = (*experts, n)
    return shapes


@dataclass(frozen=True, eq=False)
class PackedArrays:
    """A packed weight as numpy arrays.

    Args:
        format: A name of `FORMATS`.
        codes: uint32, shapes as `tensor_shapes` says.
        scales: f16 or bf16, or uint8 for e8m0 and e4m3 scales.
        n: Output features.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        num_experts: 0 for a dense layer.
        zeros: Zero points in the scales' type (u4 and u8), else None.
        global_scales: f32 [max(1, num_experts)] (nvfp4), else None.
        channel_scales: f32 [n], or [num_experts, n] (w4a8), else None.

    Raises:
        WeightError: A dtype or shape is another, or an array is missing or too many.
    """

    format: str
    codes: npt.NDArray[np.uint32]
    scales: npt.NDArray[Any]
    n: int
    k: int
    group_size: int
    num_experts: int = 0
    zeros: npt.NDArray[Any] | None = None
    global_scales: npt.NDArray[np.float32] | None = None
    channel_scales: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        held = find_format(self.format)
        scales = (np.dtype(np.uint8),) if held.scale else tuple(map(numpy_dtype, held.outputs))
        dtypes = {
            "codes": (np.dtype(np.uint32),),
            "scales": scales,
            "zeros": (self.scales.dtype,),
            "global_scales": (np.dtype(np.float32),),
            "channel_scales": (np.dtype(np.float32),),
        }
        shapes = tensor_shapes(held, self.n, self.k, self.group_size, self.num_experts)
        for name, allowed in dtypes.items():
            check_array(name, getattr(self, name), shapes.get(name), allowed, self.format)

    @property
    def held(self) -> PackedFormat:
        """Its format."""
        return FORMATS[self.format]

    @cached_property
    def meta(self) -> npt.NDArray[np.int64]:
        """What `tensors` stores beside the arrays: format number, n, k, group size, experts."""
        return np.array([self.held.number, self.n, self.k, self.group_size, self.num_experts], dtype=np.int64)

    def tensors(self, prefix: str = "") -> dict[str, npt.NDArray[Any]]:
        """Return what `ops.PackedWeight.state_dict` returns, as numpy arrays.

        Args:
            prefix: Put before each name, such as `model.layers.0.mlp.down_proj.`.
        """
        arrays = {
            "codes": self.codes.view(np.int32),
            "scales": self.scales,
            "zeros": self.zeros,
            "global_scales": self.global_scales,
            "channel_scales": self.channel_scales,
            "meta": self.meta,
        }
        return {f"{prefix}{name}": array for name, array in arrays.items() if array is not None}


def check_array(
    name: str, array: Any, shape: tuple[int, ...] | None, dtypes: tuple[Any, ...], held: str
) -> None:
    """Refuse an array or tensor of a packed weight that is not as its format has it.

    Args:
        name: What it is.
        array: The array or tensor, or None.
        shape: Its shape; None if the format has no such array.
        dtypes: Types that it may have.
        held: The format.

    Raises:
        WeightError: It is missing, too many, or of another dtype or shape.
    """
    if (array is None) != (shape is None):
        raise WeightError(f"{held} weights {'have no' if shape is None else 'need'} {name}")
    if array is None:
        return
    if array.dtype not in dtypes or tuple(array.shape) != shape:
        names = " or ".join(str(one) for one in dtypes)
        raise WeightError(f"{name} must be {names} {shape} (got {array.dtype} {tuple(array.shape)})")
