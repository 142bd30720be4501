"""Read a config's `quantization_config`: one function for each `quant_method`.

Sources: the GPTQModel README (`dynamic`); the Transformers documentation of `GPTQConfig`, `AwqConfig`,
`FineGrainedFP8Config`, `FbgemmFp8Config` and `Mxfp4Config`; the configs that ModelOpt and AutoRound export.
"""

from __future__ import annotations

import re

from ..dtypes import ALL, E4M3FN, U4, DType
from ..errors import ConfigError, UnsupportedError
from .compressed_tensors import read_compressed_tensors
from .fields import Fields, read_object
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
    match_segments,
    read_group_size,
)

MODELOPT_FILE = "hf_quant_config.json"
PACKED_METHOD = "billhook"  # quant_method of a folder that `billhook pack` wrote


def read_quantization(config: Fields) -> Quantization:
    """Read a model config's `quantization_config`.

    Raises:
        ConfigError: Not quantized, or a field is missing or wrong.
        UnsupportedError: A format that is not built.
    """
    modelopt = config.file.parent / MODELOPT_FILE
    if not config.has("quantization_config") and modelopt.is_file():
        return _check(config, _read_modelopt(read_object(modelopt)))
    if not config.has("quantization_config"):
        raise ConfigError(
            f"{config.file}: not a quantized model: field quantization_config is missing; "
            f"give the config.json of a quantized checkpoint: {', '.join(_READERS)}"
        )
    fields = config.table("quantization_config")
    method = fields.text("quant_method")
    if method not in _READERS:
        raise UnsupportedError(
            f"{config.file}: format {method!r} is not built yet; built are {', '.join(_READERS)}"
        )
    return _check(config, _READERS[method](fields))


def _check(config: Fields, found: Quantization) -> Quantization:
    if isinstance(found.default, Refusal):
        raise UnsupportedError(f"{config.file}: {found.default.why}")
    return found


def _read_gptq(fields: Fields) -> Quantization:
    layout = fields.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"{fields.file}: GPTQ checkpoint_format {layout!r} is not built yet; built are gptq and gptq_v2"
        )
    rules = [Rule(match_segments(name), None) for name in fields.texts("modules_to_not_convert")]
    dynamic = fields.table("dynamic")
    for key in sorted(dynamic.data, key=lambda key: not key.startswith("-:")):  # as GPTQModel sorts them
        pattern = match_regex(fields, "dynamic", key.removeprefix("-:").removeprefix("+:"))
        stored = None if key.startswith("-:") else _gptq_format(dynamic.table(key), fields)
        rules.append(Rule(pattern, stored))
    return Quantization(
        "gptq", listed=_listed(fields), rules=tuple(rules), default=_gptq_format(fields, fields)
    )


def _gptq_format(fields: Fields, base: Fields) -> WeightFormat | Refusal:
    """Return the format of fields that override those of `base`."""
    bits = fields.integer("bits", base.integer("bits"))
    group_size = read_group_size(fields, read_group_size(base))
    weight = INTEGERS.get((bits, fields.flag("sym", base.flag("sym", True))))
    if weight is None:
        return Refusal(f"GPTQ with {bits} bits is not built yet; built are 4 and 8")
    ordered = fields.flag("desc_act", base.flag("desc_act", False)) and group_size != -1
    return WeightFormat(weight, group_size, ordered=ordered)


def _listed(fields: Fields) -> tuple[str, ...]:
    """Return what `modules_in_block_to_quantize` lists, in one list or in lists of lists."""
    blocks = fields.data.get("modules_in_block_to_quantize") or []
    if not isinstance(blocks, list):
        raise fields.wrong("modules_in_block_to_quantize", "a list")
    names = [name for block in blocks for name in (block if isinstance(block, list) else [block])]
    if not all(isinstance(name, str) for name in names):
        raise fields.wrong("modules_in_block_to_quantize", "a list of module names")
    return tuple(names)


def _read_awq(fields: Fields) -> Quantization:
    bits, version = fields.integer("bits"), fields.text("version", "gemm").lower()
    default: WeightFormat | Refusal = WeightFormat(U4, read_group_size(fields))
    if bits != 4:
        default = Refusal(f"AWQ with {bits} bits is not built yet; built is 4")
    elif version != "gemm":
        default = Refusal(f"AWQ version {version!r} is not built yet; built is gemm")
    elif not fields.flag("zero_point", True):
        default = Refusal("AWQ without zero points (zero_point = false) is not built yet")
    return Quantization("awq", rules=_skips(fields), default=default)


def _read_auto_round(fields: Fields) -> Quantization:
    """Read AutoRound's section: the tensors of GPTQ or AutoAWQ, with exceptions by names and patterns."""
    extra = fields.table("extra_config")
    named: dict[str, WeightFormat | Refusal | None] = {}
    rules = []
    for key in extra.data:
        stored = _auto_round_format(extra.table(key), fields)
        if re.fullmatch(r"[\w.-]+", key):
            named[key] = stored
        else:
            rules.append(Rule(match_regex(fields, "extra_config", key), stored))
    blocks = fields.data.get("block_name_to_quantize") or []
    listed = blocks.split(",") if isinstance(blocks, str) else fields.texts("block_name_to_quantize")
    default = _auto_round_format(fields, fields)
    return Quantization("auto-round", listed=tuple(listed), rules=tuple(rules), default=default, named=named)


def _auto_round_format(fields: Fields, base: Fields) -> WeightFormat | Refusal | None:
    """Return the format of fields that override those of `base`; None for layers that are not quantized."""
    bits, kind = fields.integer("bits", base.integer("bits")), base.text("data_type", "int")
    packing = base.text("packing_format", "auto_round:auto_gptq")
    if bits >= _NOT_QUANTIZED:
        return None
    if kind == "int" and packing == "auto_round:auto_gptq":
        return _gptq_format(fields, base)
    if kind == "int" and packing == "auto_round:auto_awq" and bits == U4.bits:
        return WeightFormat(U4, read_group_size(fields, read_group_size(base)))
    return Refusal(
        f"AutoRound with {bits}-bit {kind} weights and packing_format {packing!r} is not built yet; "
        "built are auto_round:auto_gptq and, with 4 bits, auto_round:auto_awq"
    )


_NOT_QUANTIZED = 16  # bits of a layer that AutoRound leaves as it is


_MX_BLOCK = [1, 32]


def _read_fp8(fields: Fields) -> Quantization:
    layout = fields.text("fmt", "e4m3")
    default: WeightFormat | Refusal = WeightFormat(E4M3FN, -1, activations=E4M3FN)
    if layout not in ("e4m3", "e4m3fn", "float8_e4m3fn"):
        default = Refusal(f"fp8 with fmt {layout!r} is not built yet; built is e4m3")
    elif fields.has("weight_block_size"):
        block, powers = fields.integers("weight_block_size"), fields.text("scale_fmt", "") == "ue8m0"
        default = WeightFormat(E4M3FN, 128)
        if block == _MX_BLOCK and powers:
            default = MXFP8
        elif block != FP8_BLOCK:
            default = Refusal(
                f"fp8 with weight_block_size {block} is not built yet; built are {FP8_BLOCK} and, with "
                f"scale_fmt ue8m0, {_MX_BLOCK}"
            )
    return Quantization(fields.text("quant_method"), rules=_skips(fields), default=default, notes=KEPT_WIDE)


def _read_mxfp4(fields: Fields) -> Quantization:
    return Quantization("mxfp4", rules=_skips(fields), default=MXFP4)


def _skips(fields: Fields) -> tuple[Rule, ...]:
    names = [*fields.texts("modules_to_not_convert"), *fields.texts("ignored_layers")]
    return tuple(Rule(match_segments(name), None) for name in names)


def _read_modelopt(fields: Fields) -> Quantization:
    """Read ModelOpt's section; in its own file, and in older configs, it lies one level deeper."""
    if fields.has("quantization"):
        fields = fields.table("quantization")
    ignored = [*fields.texts("ignore"), *fields.texts("exclude_modules")]
    rules = tuple(Rule(match_segments(name), None) for name in ignored)
    if fields.text("quant_algo") == "MIXED_PRECISION":
        layers = fields.table("quantized_layers")
        named: dict[str, WeightFormat | Refusal | None] = {
            name: _modelopt_format(layers.table(name)) for name in layers.data
        }
        return Quantization("modelopt", rules=rules, named=named, notes=KEPT_WIDE)
    return Quantization("modelopt", rules=rules, default=_modelopt_format(fields), notes=KEPT_WIDE)


def _modelopt_format(fields: Fields) -> WeightFormat | Refusal:
    name = fields.text("quant_algo")
    size = read_group_size(fields, NVFP4.group_size)
    if name == "NVFP4" and size == NVFP4.group_size:
        return NVFP4
    if name == "MXFP8":
        return MXFP8
    if name in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        return WeightFormat(E4M3FN, -1, activations=E4M3FN)
    return Refusal(
        f"ModelOpt's quant_algo {name!r} (groups of {size}) is not built yet; "
        "built are NVFP4 in groups of 16, MXFP8, FP8 and FP8_PER_CHANNEL_PER_TOKEN"
    )


def _read_packed(fields: Fields) -> Quantization:
    """Read the section that `billhook pack` writes."""
    modules = fields.table("modules")
    named: dict[str, WeightFormat | Refusal | None] = {}
    for key in modules.data:
        one = modules.table(key)
        stored = WeightFormat(
            _element(one, "weight"),
            read_group_size(one),
            _element(one, "scale") if one.has("scale") else None,
            one.flag("ordered", False),
            _element(one, "activations") if one.has("activations") else None,
        )
        named[key] = stored
        named |= dict.fromkeys(one.table("parts").data, stored)
    return Quantization(PACKED_METHOD, named=named)


def _element(fields: Fields, name: str) -> DType:
    text = fields.text(name)
    if text not in ALL:
        raise fields.wrong(name, f"one of {', '.join(ALL)}")
    return ALL[text]


_READERS = {
    "gptq": _read_gptq,
    "auto-round": _read_auto_round,
    "awq": _read_awq,
    "compressed-tensors": read_compressed_tensors,
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fp8,
    "mxfp4": _read_mxfp4,
    "modelopt": _read_modelopt,
    "modelopt_fp4": _read_modelopt,
    PACKED_METHOD: _read_packed,
}
