"""What a checkpoint's config.json says of how its weights are stored, and whether the tensors agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..dtypes import E2M1F, E4M3FN, E8M0FNU
from ..errors import UnsupportedError, WeightError
from ..models import MODELOPT_FILE, Fields, Quantization, WeightFormat, read_quantization
from .stored import UNQUANTIZED, Packing, Parts, Stored

_PACKED = "compressed-tensors"
# The formats of tensors that a quant_method stands for; other methods are not checked.
_FORMATS = {
    "gptq": ("gptq", "gptq_v2"),
    "awq": ("awq",),
    "auto-round": ("gptq", "awq"),
    "fp8": ("fp8", "mxfp8"),
    "fbgemm_fp8": ("fp8",),
    "mxfp4": ("mxfp4",),
    "modelopt": ("nvfp4", "fp8", "mxfp8"),
    "modelopt_fp4": ("nvfp4",),
    _PACKED: ("pack-quantized", "int-quantized", "fp8", "mxfp8", "nvfp4", "mxfp4"),
}
# Types of weights and scales of the formats of floats; None: scales of a type of their own.
_FLOATS = {
    (E4M3FN, None): "fp8",
    (E4M3FN, E8M0FNU): "mxfp8",
    (E2M1F, E8M0FNU): "mxfp4",
    (E2M1F, E4M3FN): "nvfp4",
}
_ORDERS = ("g_idx", "weight_g_idx")  # which hold the group of each input feature
# Formats with zero points exactly if their tensors are there; GPTQ has them for symmetric weights too.
_ZERO_POINTS_TOLD = ("pack-quantized", "int-quantized")


@dataclass(frozen=True)
class Declared:
    """The `quantization_config` of a checkpoint.

    Args:
        file: The config.
        method: Its quant_method; "" if there is no such section.
        fields: The section.
        quantization: How each module is stored; None if that is not built, or nothing is quantized.
        why: Why it is not built, in words.
        packings: Bits and group sizes of compressed-tensors' packed weights.
        gptq: What GPTQ tensors are: gptq, or gptq_v2, whose zero points are stored as they are.
    """

    file: Path
    method: str
    fields: Fields
    quantization: Quantization | None = None
    why: str = ""
    packings: tuple[Packing, ...] = ()
    gptq: str = "gptq"


def read_declared(config: Fields) -> Declared:
    """Read the section, or ModelOpt's file beside the config.

    Raises:
        ConfigError: A field is missing or wrong.
    """
    section = config.table("quantization_config")
    method = section.text("quant_method", "")
    if not section.data:
        if not (config.file.parent / MODELOPT_FILE).is_file():
            return Declared(config.file, "", section)
        method = "modelopt"
    quantization, why = None, ""
    try:
        quantization = read_quantization(config)
    except UnsupportedError as error:
        why = str(error).removeprefix(f"{config.file}: ")
    return Declared(
        config.file,
        method,
        section,
        quantization,
        why,
        _packings(section) if method == _PACKED else (),
        "gptq_v2" if section.data.get("checkpoint_format") == "gptq_v2" else "gptq",
    )


def _packings(section: Fields) -> tuple[Packing, ...]:
    groups = section.table("config_groups")
    found = []
    for key in groups.data:
        weights = groups.table(key).table("weights")
        if weights.has("num_bits"):
            channel = weights.text("strategy", "group") == "channel"
            size = -1 if channel else weights.integer("group_size", -1, least=-1)
            if size == 0:
                raise weights.wrong("group_size", "a positive whole number, or -1 for channel scales")
            found.append((weights.integer("num_bits", most=8), size))
    return tuple(found)


def check_module(declared: Declared, module: str, stored: Stored, parts: Parts) -> None:
    """Refuse a module whose tensors are not what the config says.

    Args:
        declared: What the config says.
        module: Its full name.
        stored: How it is stored.
        parts: Its tensors.

    Raises:
        ConfigError: A field of the config is missing or wrong.
        WeightError: They differ; names the module and both values.
    """
    if stored.format == UNQUANTIZED:
        return
    if not declared.method:
        raise _differ(declared, module, stored.format, "field quantization_config is missing")
    formats = _FORMATS.get(declared.method, (stored.format,))
    if stored.format not in formats:
        raise _differ(declared, module, stored.format, f"quant_method {declared.method}")
    if declared.quantization is not None:
        _check_built(declared, declared.quantization, module, stored, parts)
    elif declared.method in ("gptq", "awq") and not declared.fields.has("dynamic"):
        fields = declared.fields
        bits, size = fields.integer("bits", stored.bits), fields.integer("group_size", -1, least=-1)
        _compare(declared, module, stored, bits, size)
    block = declared.fields.integers("weight_block_size")
    whole = (stored.n, stored.k)  # a module within one block has one scale
    alike = stored.block == tuple(block) or (stored.block == whole and [*map(max, whole, block)] == block)
    if stored.format == "fp8" and block and not alike:
        raise _differ(declared, module, f"a scale per {stored.scales}", f"weight_block_size {block}")


def _check_built(
    declared: Declared, quantization: Quantization, module: str, stored: Stored, parts: Parts
) -> None:
    try:
        wanted = quantization.stored([module])
    except UnsupportedError:
        return  # told where its GEMM is; what it should look like is not known
    if wanted is None:
        raise _differ(declared, module, stored.format, "not quantized")
    kind = _FLOATS.get((wanted.weight, wanted.scale))
    if kind != (stored.format if stored.format in _FLOATS.values() else None):
        raise _differ(declared, module, f"{stored} weights", kind or f"{wanted.weight}")
    _compare(declared, module, stored, wanted.weight.bits, wanted.group_size)
    if wanted.ordered and parts.keys().isdisjoint(_ORDERS):
        raise _differ(declared, module, f"no {' or '.join(_ORDERS)}", "act-order")
    if stored.format in _ZERO_POINTS_TOLD and stored.zero_points != wanted.weight.zero_point:
        kinds = ("symmetric weights", "zero points")
        found, said = kinds if wanted.weight.zero_point else reversed(kinds)
        raise _differ(declared, module, found, said)


def _compare(declared: Declared, module: str, stored: Stored, bits: int, group_size: int) -> None:
    if stored.bits != bits:
        raise _differ(declared, module, f"{stored.bits} bits", f"{bits} bits")
    size = stored.k if group_size == -1 else min(group_size, stored.k)
    if stored.block is None or stored.block[1] != size:
        raise _differ(declared, module, f"a scale per {stored.scales}", f"group_size {group_size}")


def check_quantized(declared: Declared, module: str, stored: Stored) -> None:
    """Refuse a projection that is not quantized although the config says so.

    Raises:
        WeightError: It is so.
    """
    if stored.format != UNQUANTIZED or declared.quantization is None:
        return
    try:
        wanted = declared.quantization.stored([module])
    except UnsupportedError:
        return
    if isinstance(wanted, WeightFormat):
        raise _differ(declared, module, "unquantized weights", f"{wanted.weight.bits} bits")


def _differ(declared: Declared, module: str, found: str, said: str) -> WeightError:
    return WeightError(
        f"{declared.file} does not fit the tensors: {module} has {found}, the config says: {said}"
    )
