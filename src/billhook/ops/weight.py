"""Packed weights as torch tensors: hold, move, stack, store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..dtypes import DType
from ..errors import WeightError
from ..formats.packed import PackedArrays, check_array, find_format, read_number, tensor_shapes
from .tensors import DTYPES, ELEMENTS, NARROW_DTYPES, from_numpy, to_numpy

_TENSORS = ("codes", "scales", "zeros", "global_scales", "channel_scales")
_META = 5  # format number, n, k, group size, experts


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A quantized weight in the layout that kernels read (docs/layout.md, "Packed weights").

    Args:
        codes: int32 [n64, k64, 4, 32, 4] (4 bits) or [n64, k64, 4, 2, 32, 4] (8 bits), with a leading axis of
            experts for MoE, contiguous.
        scales: float16 or bfloat16, or uint8 holding e8m0 or e4m3 codes, [n64, groups, 64], likewise.
        n: Output features.
        k: Input features.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        num_experts: 0 for a dense layer.
        format: A name of `weights.FORMATS`: u4b8, u4, u8b128, u8, fp8, mxfp8, mxfp4, nvfp4 or w4a8.
        zeros: Zero points in the scales' type and shape (u4 and u8), else None.
        global_scales: float32, one for each expert or one (nvfp4), else None.
        channel_scales: float32 [n], with a leading axis of experts for MoE (w4a8), else None.

    Raises:
        WeightError: No such format or group size, or a tensor of another dtype, shape or device.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    n: int
    k: int
    group_size: int
    num_experts: int = 0
    format: str = "u4b8"
    zeros: torch.Tensor | None = None
    global_scales: torch.Tensor | None = None
    channel_scales: torch.Tensor | None = None

    def __post_init__(self) -> None:
        held = find_format(self.format)
        dtypes = {
            "codes": (torch.int32,),
            "scales": (torch.uint8,) if held.scale else tuple(DTYPES[one] for one in held.outputs),
            "zeros": (self.scales.dtype,),
            "global_scales": (torch.float32,),
            "channel_scales": (torch.float32,),
        }
        shapes = tensor_shapes(held, self.n, self.k, self.group_size, self.num_experts)
        for name, tensor in self._named():
            check_array(name, tensor, shapes.get(name), dtypes[name], self.format)
            if tensor is not None and not tensor.is_contiguous():
                raise WeightError(f"{name} must be contiguous (got strides {tensor.stride()})")
            if tensor is not None and tensor.device != self.codes.device:
                raise WeightError(f"codes are on {self.codes.device}, {name} on {tensor.device}")

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    @property
    def weight(self) -> DType:
        """The type of its codes."""
        return find_format(self.format).weight

    @property
    def scale(self) -> DType:
        """The type of its scales."""
        return find_format(self.format).scale or ELEMENTS[self.scales.dtype]

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The types of activations that multiply it; those of 8 bits only if no others do."""
        held = find_format(self.format)
        if held.folded:
            return tuple(NARROW_DTYPES[one] for one in held.narrow_activations)
        return self.outputs

    @property
    def outputs(self) -> tuple[torch.dtype, ...]:
        """The types that D may have."""
        held = find_format(self.format)
        return tuple(DTYPES[one] for one in held.outputs) if held.scale else (self.scales.dtype,)

    @property
    def dtype(self) -> torch.dtype:
        """The type of 16-bit activations that it is meant for, and of D: the scales', else bfloat16."""
        return torch.bfloat16 if find_format(self.format).scale else self.scales.dtype

    @property
    def nbytes(self) -> int:
        """The memory that its tensors take."""
        return sum(tensor.nbytes for _, tensor in self._named() if tensor is not None)

    def __str__(self) -> str:
        experts = f"{self.num_experts} x " if self.num_experts else ""
        group = "channel scales" if self.group_size == -1 else f"group_size {self.group_size}"
        return f"{self.format} {experts}[k={self.k}, n={self.n}], {group}, {self.dtype}"

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return this weight on another device, or itself if it is there."""
        if self.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            name: None if tensor is None else tensor.to(device) for name, tensor in self._named()
        }
        return replace(self, **moved)

    def clone(self) -> PackedWeight:
        """Return a copy with memory of its own."""
        copied: dict[str, Any] = {
            name: None if tensor is None else tensor.clone() for name, tensor in self._named()
        }
        return replace(self, **copied)

    def state_dict(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the weight as tensors alone, for `torch.save` or safetensors.

        Args:
            prefix: Put before each name, such as `model.layers.0.mlp.down_proj.`.
        """
        meta = (find_format(self.format).number, self.n, self.k, self.group_size, self.num_experts)
        tensors = {f"{prefix}{name}": tensor for name, tensor in self._named() if tensor is not None}
        return tensors | {f"{prefix}meta": torch.tensor(meta, dtype=torch.int64)}

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> PackedWeight:
        """Read back what `state_dict` gave.

        Raises:
            WeightError: A tensor is missing or does not fit, or the weight was packed in another layout.
        """
        found = {name: tensors.get(f"{prefix}{name}") for name in (*_TENSORS, "meta")}
        codes, scales, meta = found["codes"], found["scales"], found["meta"]
        if codes is None or scales is None or meta is None:
            missing = [name for name in ("codes", "scales", "meta") if found[name] is None]
            raise WeightError(f"packed weight {prefix!r} lacks {', '.join(missing)}")
        numbers = [int(value) for value in meta.tolist()]
        if len(numbers) != _META:
            raise WeightError(f"packed weight {prefix!r} has {len(numbers)} numbers in meta, not {_META}")
        number, n, k, group_size, num_experts = numbers
        return cls(
            codes,
            scales,
            n,
            k,
            group_size,
            num_experts,
            format=read_number(number).name,
            zeros=found["zeros"],
            global_scales=found["global_scales"],
            channel_scales=found["channel_scales"],
        )

    def _named(self) -> tuple[tuple[str, torch.Tensor | None], ...]:
        return tuple((name, getattr(self, name)) for name in _TENSORS)


def stack_weights(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Return dense weights as the experts of one.

    Args:
        weights: At least one; all of one format, shape and device.

    Raises:
        WeightError: None at all, or they differ.
    """
    if not weights:
        raise WeightError("a Mixture-of-Experts weight must hold at least one expert (got 0)")
    first = weights[0]
    for one in weights:
        if one.num_experts or str(one) != str(first) or one.device != first.device:
            raise WeightError(f"experts must be dense weights that are alike (got {one} beside {first})")
    stacked: dict[str, Any] = {
        name: None if tensor is None else torch.stack([getattr(one, name) for one in weights])
        for name, tensor in first._named()
    }
    if first.global_scales is not None:
        stacked["global_scales"] = torch.cat(
            [one.global_scales for one in weights if one.global_scales is not None]
        )
    return replace(first, **stacked, num_experts=len(weights))


def from_arrays(packed: PackedArrays, device: torch.device | str = "cpu") -> PackedWeight:
    """Return numpy arrays of a packed weight as tensors; on the CPU they share memory."""
    others = (getattr(packed, name) for name in _TENSORS[2:])
    return PackedWeight(
        from_numpy(packed.codes).to(device),
        from_numpy(packed.scales).to(device),
        packed.n,
        packed.k,
        packed.group_size,
        packed.num_experts,
        packed.format,
        *(None if one is None else from_numpy(one).to(device) for one in others),
    )


def to_arrays(weight: PackedWeight) -> PackedArrays:
    """Return a packed weight as numpy arrays on the host; a CPU weight's memory is shared."""
    others = (getattr(weight, name) for name in _TENSORS[2:])
    return PackedArrays(
        weight.format,
        to_numpy(weight.codes).view(np.uint32),
        to_numpy(weight.scales),
        weight.n,
        weight.k,
        weight.group_size,
        weight.num_experts,
        *(None if one is None else to_numpy(one) for one in others),
    )
