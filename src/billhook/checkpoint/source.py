"""A quantized checkpoint as GEMMs: what they are from headers, their weights one layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..errors import ConfigError, UnsupportedError
from ..formats import host
from ..models import PACKED_METHOD, check_folded, fold_format
from .data import read_array
from .declared import Declared, read_declared
from .folder import Checkpoint, read_checkpoint
from .fuse import Fused, fuse
from .header import Tensor
from .join import join, stack, take_experts
from .modules import read_linears
from .read import Weight, read_weight
from .serve import check_sizes, read_model
from .stored import UNQUANTIZED

# Of quantized activations of types, or with scales, that kernels do not take.
_LEFT_OUT = ("input_scale", "input_global_scale", "input_zero_point")
# What belongs to a module, but not to its weight: scales of the key-value cache.
_KEPT = ("k_scale", "v_scale", "output_scale")


@dataclass(frozen=True)
class Source:
    """A quantized checkpoint.

    Args:
        checkpoint: Its folder.
        declared: How its config says it is stored.
        modules: The quantized GEMMs, by name, in the order of layers.
        plain: All tensors that are no part of them, by name.
        notes: What was left out or stays apart, in words.
    """

    checkpoint: Checkpoint
    declared: Declared
    modules: Mapping[str, Fused]
    plain: Mapping[str, Tensor]
    notes: tuple[str, ...]

    def read(self, name: str) -> Weight:
        """Read the weight of a GEMM, [k, n], or [experts, k, n].

        Args:
            name: A name of `modules`.

        Raises:
            WeightError: A value that no such weight has; names file, tensor, place and value.
        """
        experts = list(self.experts(name))
        return stack(experts) if self.modules[name].num_experts else experts[0]

    def experts(self, name: str) -> Iterator[Weight]:
        """Read the weights of a GEMM one expert at a time; a dense layer is one.

        Args:
            name: A name of `modules`.

        Raises:
            WeightError: As `read`.
        """
        fused = self.modules[name]
        step = len(fused.parts)
        for start in range(0, len(fused.linears), step):
            members = fused.linears[start : start + step]
            weights = [read_weight(one, fused.stored, fused.static) for one in members]
            stacked = members[0].stored.num_experts
            for one in take_experts(weights[0]) if stacked else (join(weights),):
                yield replace(one, parts=host.fold(one.parts)) if fused.held.folded else one

    def array(self, name: str) -> npt.NDArray[Any]:
        """Read a tensor that is no part of a GEMM.

        Args:
            name: A name of `plain`.

        Raises:
            WeightError: It cannot be read.
        """
        return read_array(self.plain[name])


def open_checkpoint(folder: Path, *, fold: bool = False) -> Source:
    """Read a quantized checkpoint's headers and config, and what tells which modules are one GEMM.

    Args:
        folder: Holds config.json and safetensors files, as Hugging Face has them.
        fold: Whether to fold the scales of groups into weights (w4a8) where the config asks for e4m3
            activations; by default they are kept as they are, which is more exact.

    Raises:
        ConfigError: A file that cannot be read, or a field of the config that makes no sense.
        WeightError: A tensor is missing, extra, of a wrong dtype or shape, or not what the config says.
        UnsupportedError: A format that is not built, nothing is quantized, or scales cannot be folded.
    """
    checkpoint = read_checkpoint(folder)
    declared = read_declared(checkpoint.config)
    if declared.method == PACKED_METHOD:
        raise ConfigError(
            f"{folder} is packed already; load it as it is, or pack the checkpoint it was made of"
        )
    linears = read_linears(checkpoint.tensors.values(), declared)
    model, _ = read_model(checkpoint, declared)
    if model is not None:
        check_sizes(model, linears, declared)
    quantized = [one for one in linears.values() if one.stored.format != UNQUANTIZED]
    if not quantized:
        raise UnsupportedError(f"{folder}: no layer is quantized; there is nothing to pack")
    if declared.quantization is None:
        raise UnsupportedError(f"{declared.file}: {declared.why}")
    modules, notes = fuse(quantized, declared.quantization)
    if fold:
        modules = [replace(one, stored=fold_format(one.name, one.stored)) for one in modules]
        check_folded(declared.file, declared.method, (one.stored for one in modules))
    used = {part.name for one in quantized for name, part in one.parts.items() if name not in _KEPT}
    found = sum(tensor.name.endswith(_LEFT_OUT) for tensor in checkpoint.tensors.values())
    kept = sum(len(one.linears) for one in modules if one.static)
    if found > kept:
        notes.append(
            f"{found - kept} scales of quantized activations are left out, since kernels take one for each "
            "token or a static one; those activations have 16 bits"
        )
    return Source(
        checkpoint,
        declared,
        {one.name: one for one in modules},
        {name: tensor for name, tensor in checkpoint.tensors.items() if name not in used},
        (*checkpoint.notes, *notes),
    )
