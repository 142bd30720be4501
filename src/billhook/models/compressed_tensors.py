"""Read a config's `quantization_config` as compressed-tensors writes it.

Source: the compressed-tensors README, `QuantizationArgs` (`config_groups`, `ignore`, `targets`) and
`match_targets`: names come before patterns, those in alphabetic order, and `Linear` last.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..dtypes import E4M3FN, S8, DType
from .fields import Fields
from .quantization import (
    FP8_BLOCK,
    INTEGERS,
    KEPT_WIDE,
    MXFP4,
    MXFP8,
    NVFP4,
    Quantization,
    Refusal,
    Rule,
    WeightFormat,
    match_regex,
    read_group_size,
)

_LAYOUTS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
# Bits and strategy of floats, with their group size -> how they are stored.
_FLOATS = {
    (8, "tensor", None): WeightFormat(E4M3FN, -1),
    (8, "channel", None): WeightFormat(E4M3FN, -1),
    (8, "block", None): WeightFormat(E4M3FN, 128),
    (8, "group", 128): WeightFormat(E4M3FN, 128),
    (8, "group", 32): MXFP8,
    (4, "group", 32): MXFP4,
    (4, "tensor_group", 16): NVFP4,
}


def read_compressed_tensors(fields: Fields) -> Quantization:
    """Read the section.

    Raises:
        ConfigError: A field is missing or wrong.
    """
    layout = fields.text("format")
    groups = fields.table("config_groups")
    if not groups.data:
        raise fields.wrong("config_groups", "an object with groups")
    targets: dict[str, WeightFormat | Refusal] = {}  # the last of the groups that name a target wins
    wide = False
    for key in groups.data:
        group = groups.table(key)
        stored = _read_group(fields, group, layout)
        if isinstance(stored, WeightFormat):
            stored = replace(stored, activations=_read_activations(group.table("input_activations")))
        wide = wide or group.has("input_activations")
        targets |= dict.fromkeys(group.texts("targets"), stored)
    default = targets.pop("Linear", None)
    in_order = sorted(targets, key=lambda target: (target.startswith("re:"), target))
    named = [Rule(_target(groups, "targets", target), targets[target]) for target in in_order]
    ignored = fields.texts("ignore")
    plain = frozenset(name for name in ignored if not name.startswith("re:"))
    skips = [Rule(_target(fields, "ignore", name), None) for name in ignored if name.startswith("re:")]
    return Quantization(
        "compressed-tensors",
        plain=plain,
        rules=(*skips, *named),
        default=default,
        notes=KEPT_WIDE if wide else (),
    )


def _read_group(fields: Fields, group: Fields, layout: str) -> WeightFormat | Refusal:
    layout = group.text("format", layout)
    weights = group.table("weights")
    bits, kind = weights.integer("num_bits"), weights.text("type", "int")
    symmetric = weights.flag("symmetric", True)
    strategy = weights.text("strategy", "group" if weights.has("group_size") else "channel")
    sparsity = fields.table("sparsity_config").text("format", "dense")
    unlike = {
        f"format {layout!r}": layout not in _LAYOUTS,
        f"sparsity_config.format {sparsity!r}": sparsity != "dense",
        "transforms (transform_config)": bool(fields.table("transform_config").table("config_groups").data),
        "zero points of floats": kind == "float" and not symmetric,
    }
    for what, there in unlike.items():
        if there:
            return _refuse(what)
    if kind == "float":
        return _read_float(weights, bits, strategy)
    weight = INTEGERS.get((bits, symmetric)) if kind == "int" else None
    if weight is None:
        return _refuse(f"{bits}-bit {kind} weights")
    if strategy not in ("group", "channel", "tensor"):
        return _refuse(f"strategy {strategy!r} of {kind} weights")
    order = weights.data.get("actorder")
    ordered = order is True or order == "group"
    size = read_group_size(weights) if strategy == "group" else -1
    return WeightFormat(weight, size, ordered=ordered and size != -1)


def _read_float(weights: Fields, bits: int, strategy: str) -> WeightFormat | Refusal:
    size = read_group_size(weights) if "group" in strategy else None
    block = weights.integers("block_structure") or FP8_BLOCK
    stored = _FLOATS.get((bits, strategy, size))
    if stored is None or block != FP8_BLOCK:
        kind = f"strategy {strategy!r}" + (f" and groups of {size}" if size else "")
        return _refuse(f"{bits}-bit floats, {kind}" + (f" of {block}" if strategy == "block" else ""))
    return stored


def _read_activations(inputs: Fields) -> DType | None:
    """Return the type of 8-bit activations that have one scale for each token or for all; None for others."""
    dynamic = inputs.data.get("dynamic", False)
    strategy = inputs.text("strategy", "token" if dynamic else "tensor")
    if inputs.integer("num_bits", 16) != 8 or not inputs.flag("symmetric", True):
        return None
    if strategy != ("token" if dynamic else "tensor"):
        return None
    return {"int": S8, "float": E4M3FN}.get(inputs.text("type", "int"))


def _refuse(what: str) -> Refusal:
    return Refusal(
        f"compressed-tensors with {what} is not built yet; built are 4- and 8-bit integers (group, channel), "
        "fp8 (tensor, channel, group and block of 128), MXFP8, MXFP4 and NVFP4"
    )


def _target(fields: Fields, name: str, target: str) -> re.Pattern[str]:
    """Return the pattern of a target: `re:PATTERN`, or a module's full name."""
    if target.startswith("re:"):
        return match_regex(fields, name, target.removeprefix("re:"))
    return re.compile(re.escape(target) + r"\Z")
