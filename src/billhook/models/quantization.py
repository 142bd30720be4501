"""How each module of a checkpoint is quantized, once its config has been read (`methods.py`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..dtypes import E2M1F, E4M3FN, E8M0FNU, U4, U4B8, U8, U8B128, DType
from ..errors import ConfigError, UnsupportedError
from ..weights import FORMATS, PackedFormat
from .fields import Fields


@dataclass(frozen=True)
class WeightFormat:
    """How one module's weights are stored.

    Args:
        weight: Element type.
        group_size: Weights along k that share a scale; -1 for channel scales, which the one scale of a tensor
            becomes. Blocks of 128 x 128 are groups of 128 whose scales are alike for 128 channels.
        scale: Type of the scales; None: that of the activations.
        ordered: Whether input features are taken in another order (GPTQ's act-order), into which activations
            are brought before the GEMM.
        activations: Type of 8-bit activations that the config asks for, with a scale for each token or a
            static one; None if it asks for none that kernels take.
    """

    weight: DType
    group_size: int
    scale: DType | None = None
    ordered: bool = False
    activations: DType | None = None

    @property
    def packed(self) -> PackedFormat:
        """The format that it is packed in."""
        return next(one for one in FORMATS.values() if (one.weight, one.scale) == (self.weight, self.scale))


MXFP4 = WeightFormat(E2M1F, 32, E8M0FNU)
MXFP8 = WeightFormat(E4M3FN, 32, E8M0FNU)
NVFP4 = WeightFormat(E2M1F, 16, E4M3FN)
FP8_BLOCK = [128, 128]
INTEGERS = {(4, True): U4B8, (4, False): U4, (8, True): U8B128, (8, False): U8}  # bits, symmetric
# Kernels with 8-bit activations are asked for by their type; by default a model runs with the exact ones.
KEPT_WIDE = (
    "the config may quantize activations; they have 16 bits unless 8 are asked for (--narrow-activations) "
    "and kernels take them",
)


@dataclass(frozen=True)
class Refusal:
    """A way of storing weights that is not built; `why` says so in words."""

    why: str


@dataclass(frozen=True)
class Rule:
    """A pattern on module names and how the modules that it matches are stored; None: not quantized."""

    pattern: re.Pattern[str]
    stored: WeightFormat | Refusal | None

    def matches(self, name: str, module: str) -> bool:
        """Return whether the pattern matches a module, given its name or another that configs have for it.

        A pattern matches another name only if it spells its last part out: `.*gate.*` means gate_proj, not
        up_proj, which is part of gate_up_proj.
        """
        spelt = name == module or name.rpartition(".")[2] in self.pattern.pattern
        return spelt and self.pattern.match(name) is not None


@dataclass(frozen=True)
class Quantization:
    """How each module of a checkpoint is stored: as `named` or the first matching rule says, or `default`.

    Args:
        method: `quant_method` of the config.
        plain: Names of modules that are not quantized.
        listed: Parts of names; a module is quantized only if its name has one of them. Empty: no condition.
        rules: In order of precedence.
        default: For modules that no rule matches; None: not quantized.
        named: How modules of these names are stored.
        notes: What is assumed, in words.
    """

    method: str
    plain: frozenset[str] = frozenset()
    listed: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    default: WeightFormat | Refusal | None = None
    named: Mapping[str, WeightFormat | Refusal | None] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

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
        return bool(self.plain or self.listed or self.rules or self.named)

    def _stored(self, module: str) -> WeightFormat | Refusal | None:
        names = _spellings(module)
        for name in names:
            if name in self.named:
                return self.named[name]
        if not self.plain.isdisjoint(names):
            return None
        if self.listed and not any(part in name for part in self.listed for name in names):
            return None
        for rule in self.rules:
            if any(rule.matches(name, module) for name in names):
                return rule.stored
        return self.default


_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}


_EXPERT = re.compile(r"(?<=\.experts\.)[0-9]+(?=\.)")


def _spellings(module: str) -> tuple[str, ...]:
    """Return a module's name and what else configs call it.

    That is the name of those that engines fuse with it, and that of a projection of all experts.
    """
    place, _, name = module.rpartition(".")
    names = (module, f"{place}.{_FUSED[name]}") if name in _FUSED else (module,)
    anyone = _EXPERT.sub("*", module)
    return names if anyone == module else (*names, anyone)


def read_group_size(fields: Fields, default: int | None = None) -> int:
    """Return the field group_size: positive, or -1 for channel scales.

    Raises:
        ConfigError: Missing without a default, or another value.
    """
    value = fields.integer("group_size", default, least=-1)
    if value == 0:
        raise fields.wrong("group_size", "a positive whole number, or -1 for channel scales")
    return value


def match_segments(name: str) -> re.Pattern[str]:
    """Return the pattern of module names that contain `name` between dots; `*` in it stands for any text."""
    words = ".*".join(re.escape(part) for part in name.strip(".").split("*"))
    return re.compile(rf"(?:.*\.)?{words}(?:\.|\Z)")


def match_regex(fields: Fields, name: str, text: str) -> re.Pattern[str]:
    """Return the pattern that a field gives as a regular expression.

    Raises:
        ConfigError: It is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        place = f"{fields.file}: field {fields.path}{name}"
        raise ConfigError(f"{place} holds {text!r}, which is not a regular expression: {error}") from error
