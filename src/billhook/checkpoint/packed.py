"""A packed folder: its weights as kernels read them, mapped into memory, none packed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import BF16, F16, DType
from ..errors import ConfigError, WeightError
from ..formats.packed import PackedArrays
from ..models import PACKED_METHOD, Fields, WeightFormat, read_quantization
from .data import map_array
from .fill import plan_module
from .folder import read_checkpoint
from .fuse import Fused, Part
from .header import Tensor
from .modules import Linear, natural_order
from .stored import Stored

VERSION = 1  # of the section of config.json
_ARRAYS = ("codes", "scales", "zeros", "global_scales", "channel_scales", "meta")  # of the packed weight
_TENSORS = (*_ARRAYS, "bias", "input_order", "input_scales")
_ACTIVATIONS = {one.name: one for one in (F16, BF16)}


@dataclass(frozen=True)
class PackedModule:
    """A packed weight and what belongs to it, mapped from a file.

    Args:
        weight: The weight; `ops.from_arrays` makes tensors of it.
        bias: [n] or [experts, n] in the activations' type; None if there is none.
        input_order: int32 [k]: the product is `x[:, input_order] @ weights`; None if they are in order.
        input_scales: float32 [parts] or [experts, parts], static scales of 8-bit activations; None if there
            are none. The largest of them serves all parts at once.
    """

    weight: PackedArrays
    bias: npt.NDArray[Any] | None = None
    input_order: npt.NDArray[np.int32] | None = None
    input_scales: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PackedFolder:
    """What `billhook pack` wrote.

    Args:
        folder: The folder.
        activations: The type of activations that it was packed for.
        modules: Its GEMMs, by name, in the order of layers.
        plain: All other tensors, by name.
        tensors: Every tensor, by name.
    """

    folder: Path
    activations: DType
    modules: Mapping[str, Fused]
    plain: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]

    def read(self, name: str) -> PackedModule:
        """Map the weight of a GEMM into memory.

        Args:
            name: A name of `modules`.

        Raises:
            WeightError: Its meta tensor is not what the config says, or the file cannot be mapped.
        """
        fused = self.modules[name]
        found = {
            part: map_array(tensor)
            for part in _TENSORS
            if (tensor := self.tensors.get(f"{name}.{part}")) is not None
        }
        meta = (fused.held.number, fused.n, fused.k, fused.group_size, fused.num_experts)
        if tuple(found["meta"].tolist()) != meta:
            tensor = self.tensors[f"{name}.meta"]
            raise WeightError(
                f"{tensor.file}: tensor {tensor.name} must be {list(meta)}, by config.json "
                f"(got {found['meta'].tolist()})"
            )
        weight = PackedArrays(
            fused.format,
            found["codes"].view(np.uint32),
            found["scales"],
            fused.n,
            fused.k,
            fused.group_size,
            fused.num_experts,
            found.get("zeros"),
            found.get("global_scales"),
            found.get("channel_scales"),
        )
        return PackedModule(weight, found.get("bias"), found.get("input_order"), found.get("input_scales"))

    def array(self, name: str) -> npt.NDArray[Any]:
        """Map a tensor that is no part of a GEMM into memory.

        Args:
            name: A name of `plain`.

        Raises:
            WeightError: The file cannot be mapped.
        """
        return map_array(self.plain[name])


def open_packed(folder: Path) -> PackedFolder:
    """Open a folder that `billhook pack` wrote; reads its config and headers.

    Raises:
        ConfigError: It was not packed to the end, or is no such folder, or its config makes no sense.
        WeightError: A file is damaged, or a tensor is missing or of a wrong dtype or shape.
    """
    checkpoint = read_checkpoint(folder)
    activations, modules = read_section(checkpoint.config)
    used: set[str] = set()
    for fused in modules.values():
        for planned in plan_module(fused, activations):
            tensor = checkpoint.tensors.get(planned.name)
            if tensor is None:
                raise WeightError(f"{folder}: tensor {planned.name} is missing; config.json says it is there")
            if (tensor.dtype, tensor.shape) != (planned.dtype, planned.shape):
                raise WeightError(
                    f"{tensor.file}: tensor {tensor.name} must be {planned.dtype} {list(planned.shape)}, "
                    f"by config.json (got {tensor})"
                )
            used.add(planned.name)
    plain = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in used}
    return PackedFolder(folder, activations, modules, plain, checkpoint.tensors)


def list_linears(packed: PackedFolder) -> dict[str, Linear]:
    """Return the modules that a packed folder was made of, by name, in order; they share its bytes."""
    found: dict[str, Linear] = {}
    for fused in packed.modules.values():
        size = sum(packed.tensors[one.name].bytes for one in plan_module(fused, packed.activations))
        spread = any("*" in part.name for part in fused.parts)
        numbers = range(fused.num_experts) if spread else range(1)
        names = [(part.name.replace("*", str(number)), part.n) for number in numbers for part in fused.parts]
        done, total = 0, fused.n * len(numbers)
        group = fused.k if fused.group_size == -1 else fused.group_size
        for name, n in names:
            stored = Stored(
                f"packed {fused.format}",
                fused.stored.weight.bits,
                n,
                fused.k,
                (1, min(group, fused.k)),
                fused.stored.weight.zero_point,
                fused.bias,
                0 if spread else fused.num_experts,
            )
            found[name] = Linear(name, stored, size * (done + n) // total - size * done // total)
            done += n
    return {name: found[name] for name in sorted(found, key=natural_order)}


def write_section(
    modules: Mapping[str, Fused], activations: DType, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the `quantization_config` of a packed folder.

    Args:
        modules: Its GEMMs, by name.
        activations: Type of the activations.
        source: That of the checkpoint.
    """
    return {
        "quant_method": PACKED_METHOD,
        "version": VERSION,
        "activations": str(activations),
        "modules": {name: _write_module(fused) for name, fused in modules.items()},
        "source": dict(source),
    }


def _write_module(fused: Fused) -> dict[str, Any]:
    return {
        "weight": str(fused.stored.weight),
        **({"scale": str(fused.stored.scale)} if fused.stored.scale else {}),
        "group_size": fused.group_size,
        "k": fused.k,
        "parts": {part.name: part.n for part in fused.parts},
        **({"num_experts": fused.num_experts} if fused.num_experts else {}),
        **({"bias": True} if fused.bias else {}),
        **({"ordered": True} if fused.ordered else {}),
        **({"activations": str(fused.stored.activations)} if fused.stored.activations else {}),
        **({"static": True} if fused.static else {}),
    }


def read_section(config: Fields) -> tuple[DType, dict[str, Fused]]:
    """Return the activations' type and the GEMMs that a packed folder's config names.

    Raises:
        ConfigError: A field is missing or wrong, or the folder is none of ours.
    """
    section = config.table("quantization_config")
    if section.text("quant_method", "") != PACKED_METHOD:
        raise ConfigError(
            f"{config.file}: not a packed folder: field quantization_config.quant_method is not "
            f"{PACKED_METHOD}; make one with `billhook pack`"
        )
    if section.integer("version") != VERSION:
        raise section.wrong("version", f"{VERSION}, which this version reads")
    if section.text("activations") not in _ACTIVATIONS:
        raise section.wrong("activations", "f16 or bf16")
    quantization = read_quantization(config)
    table = section.table("modules")
    modules = {name: _read_module(table.table(name), name, quantization.named[name]) for name in table.data}
    return _ACTIVATIONS[section.text("activations")], modules


def _read_module(fields: Fields, name: str, stored: Any) -> Fused:
    parts = fields.table("parts")
    if not isinstance(stored, WeightFormat) or not parts.data:
        raise fields.wrong("parts", "the output features of each part, by name")
    return Fused(
        name,
        tuple(Part(part, parts.integer(part)) for part in parts.data),
        fields.integer("k"),
        fields.integer("num_experts", 0, least=0),
        stored,
        fields.flag("bias", False),
        fields.flag("ordered", False),
        fields.flag("static", False),
    )
