"""How a checkpoint's modules are quantized, as the `quantization_config` of its config.json says.

Sources: the GPTQModel README (`dynamic`), the AutoGPTQ and Transformers documentation of `GPTQConfig`,
the compressed-tensors README (`config_groups`, `ignore`, `targets`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..dtypes import U4B8, DType
from ..errors import ConfigError, UnsupportedError
from .fields import Fields

BUILT = "gptq (4-bit, symmetric) and compressed-tensors (pack-quantized, 4-bit int, symmetric, weights only)"


@dataclass(frozen=True)
class WeightFormat:
    """How one module's weights are stored.

    Args:
        weight: Element type.
        group_size: Weights along k that share a scale; -1 for channel scales.
    """

    weight: DType
    group_size: int


@dataclass(frozen=True)
class Refusal:
    """A way of storing weights that is not built; `why` says so in words."""

    why: str


@dataclass(frozen=True)
class Rule:
    """A pattern on module names and how the modules that it matches are stored; None: not quantized."""

    pattern: re.Pattern[str]
    stored: WeightFormat | Refusal | None


@dataclass(frozen=True)
class Quantization:
    """How each module of a checkpoint is stored: as the first rule that matches says, else as `default`.

    Args:
        method: `quant_method` of the config.
        plain: Names of modules that are not quantized.
        listed: Parts of names; a module is quantized only if its name has one of them. Empty: no condition.
        rules: In order of precedence.
        default: For modules that no rule matches; None: not quantized.
    """

    method: str
    plain: frozenset[str]
    listed: tuple[str, ...]
    rules: tuple[Rule, ...]
    default: WeightFormat | Refusal | None

    def stored(self, modules: Sequence[str]) -> WeightFormat | None:
        """Return how modules that an engine fuses into one GEMM are stored; None if they are not quantized.

        Args:
            modules: Full names, such as `model.layers.0.self_attn.q_proj`.

        Raises:
            UnsupportedError: Their format is not built, or they differ.
        """
        found = {self._stored(module) for module in modules} if self._has_exceptions else {self.default}
        for one in found:
            if isinstance(one, Refusal):
                raise UnsupportedError(f"{modules[0]}: {one.why}")
        if len(found) > 1:
            raise UnsupportedError(
                f"{modules[0]} and the modules that engines fuse with it are quantized in different ways; "
                "they must agree to be one GEMM"
            )
        (only,) = found
        return only if isinstance(only, WeightFormat) else None

    @property
    def _has_exceptions(self) -> bool:
        return bool(self.plain or self.listed or self.rules)

    def _stored(self, module: str) -> WeightFormat | Refusal | None:
        names = _spellings(module)
        if not self.plain.isdisjoint(names):
            return None
        if self.listed and not any(part in name for part in self.listed for name in names):
            return None
        for rule in self.rules:
            if any(rule.pattern.match(name) for name in names):
                return rule.stored
        return self.default


_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


def _spellings(module: str) -> tuple[str, ...]:
    """Return a module's name and, if engines fuse it with others, theirs for it: configs use both."""
    place, _, name = module.rpartition(".")
    return (module, f"{place}.{_FUSED[name]}") if name in _FUSED else (module,)


def read_quantization(config: Fields) -> Quantization:
    """Read a model config's `quantization_config`.

    Raises:
        ConfigError: Not quantized, or a field is missing or wrong.
        UnsupportedError: A format that is not built yet.
    """
    if not config.has("quantization_config"):
        raise ConfigError(
            f"{config.file}: not a quantized model: field quantization_config is missing; "
            f"give the config.json of a quantized checkpoint: {BUILT}"
        )
    fields = config.table("quantization_config")
    method = fields.text("quant_method")
    if method == "gptq":
        found = _read_gptq(fields)
    elif method == "compressed-tensors":
        found = _read_compressed_tensors(fields)
    else:
        raise UnsupportedError(f"{config.file}: format {method!r} is not built yet; built are {BUILT}")
    if isinstance(found.default, Refusal):
        raise UnsupportedError(f"{config.file}: {found.default.why}")
    return found


def _read_gptq(fields: Fields) -> Quantization:
    layout = fields.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            f"{fields.file}: GPTQ checkpoint_format {layout!r} is not built yet; built are gptq and gptq_v2"
        )
    rules = [Rule(_segments(name), None) for name in fields.texts("modules_to_not_convert")]
    dynamic = fields.table("dynamic")
    for key in dynamic.data:
        pattern = _regex(fields, "dynamic", key.removeprefix("-:").removeprefix("+:"))
        stored = None if key.startswith("-:") else _gptq_format(dynamic.table(key), fields)
        rules.append(Rule(pattern, stored))
    return Quantization("gptq", frozenset(), _listed(fields), tuple(rules), _gptq_format(fields, fields))


def _gptq_format(fields: Fields, base: Fields) -> WeightFormat | Refusal:
    """Return the format of fields that override those of `base`."""
    bits = fields.integer("bits", base.integer("bits"))
    group_size = _group_size(fields, _group_size(base))
    if bits != 4:
        return Refusal(f"GPTQ with {bits} bits is not built yet; built are {BUILT}")
    if not fields.flag("sym", base.flag("sym", True)):
        return Refusal(f"GPTQ with zero points (sym = false) is not built yet; built are {BUILT}")
    if fields.flag("desc_act", base.flag("desc_act", False)) and group_size != -1:
        return Refusal(
            f"GPTQ with weights in activation order (desc_act = true, group_size {group_size}) is not built "
            "yet; built are desc_act = false, and channel scales"
        )
    return WeightFormat(U4B8, group_size)


def _listed(fields: Fields) -> tuple[str, ...]:
    """Return what `modules_in_block_to_quantize` lists, in one list or in lists of lists."""
    blocks = fields.data.get("modules_in_block_to_quantize") or []
    if not isinstance(blocks, list):
        raise fields.wrong("modules_in_block_to_quantize", "a list")
    names = [name for block in blocks for name in (block if isinstance(block, list) else [block])]
    if not all(isinstance(name, str) for name in names):
        raise fields.wrong("modules_in_block_to_quantize", "a list of module names")
    return tuple(names)


def _read_compressed_tensors(fields: Fields) -> Quantization:
    layout = fields.text("format")
    groups = fields.table("config_groups")
    if not groups.data:
        raise fields.wrong("config_groups", "an object with groups")
    named: list[Rule] = []
    default: WeightFormat | Refusal | None = None
    for key in groups.data:
        group = groups.table(key)
        stored = _compressed_format(group, layout)
        for target in group.texts("targets"):
            if target == "Linear":
                default = default or stored
            else:
                named.append(Rule(_target(group, "targets", target), stored))
    ignored = fields.texts("ignore")
    plain = frozenset(name for name in ignored if not name.startswith("re:"))
    skips = [Rule(_target(fields, "ignore", name), None) for name in ignored if name.startswith("re:")]
    return Quantization("compressed-tensors", plain, (), (*skips, *named), default)


def _compressed_format(group: Fields, layout: str) -> WeightFormat | Refusal:
    layout = group.text("format", layout)
    weights = group.table("weights")
    bits, kind = weights.integer("num_bits"), weights.text("type", "int")
    order = weights.data.get("actorder")
    strategy = weights.text("strategy", "group" if weights.has("group_size") else "channel")
    unlike = {
        "quantized activations": group.has("input_activations"),
        f"format {layout!r}": layout != "pack-quantized",
        f"{bits}-bit {kind} weights": (bits, kind) != (4, "int"),
        "zero points (symmetric = false)": not weights.flag("symmetric", True),
        "weights in activation order (actorder = group)": order is True or order == "group",
        f"strategy {strategy!r}": strategy not in ("group", "channel"),
    }
    for what, there in unlike.items():
        if there:
            return Refusal(f"compressed-tensors with {what} is not built yet; built are {BUILT}")
    return WeightFormat(U4B8, -1 if strategy == "channel" else _group_size(weights))


def _group_size(fields: Fields, default: int | None = None) -> int:
    value = fields.integer("group_size", default, least=-1)
    if value == 0:
        raise fields.wrong("group_size", "a positive whole number, or -1 for channel scales")
    return value


def _target(fields: Fields, name: str, target: str) -> re.Pattern[str]:
    """Return the pattern of a compressed-tensors target: `re:PATTERN`, or a module's full name."""
    if target.startswith("re:"):
        return _regex(fields, name, target.removeprefix("re:"))
    return re.compile(re.escape(target) + r"\Z")


def _segments(name: str) -> re.Pattern[str]:
    """Return the pattern that matches module names containing `name` between dots."""
    return re.compile(rf"(?:.*\.)?{re.escape(name)}(?:\.|\Z)")


def _regex(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        place = f"{fields.file}: field {fields.path}{name}"
        raise ConfigError(f"{place} holds {text!r}, which is not a regular expression: {error}") from error
