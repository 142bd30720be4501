"""What to measure: layers and token counts, from a TOML file, a model's config, or plain numbers."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..config import GemmTypes, Problem
from ..dtypes import BF16, dtype
from ..errors import ConfigError, InputError, UnsupportedError
from ..formats.packed import find_format, find_packed
from ..weights import PackedFormat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DENSE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MOE_TOKENS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Workload:
    """One layer and the token counts to measure it at.

    Args:
        name: How tables and records call it.
        n: Output features of one weight matrix.
        k: Input features.
        tokens: Token counts.
        types: Element types.
        group_size: Weights along k that share one scale; -1 for channel scales.
        num_experts: Weight matrices of an MoE layer; 0 for a dense layer.
        top_k: Experts that each token visits; 0 for a dense layer.
        per_slot: MoE: A holds one row per (token, slot), as the second projection sees it, not per token.
    """

    name: str
    n: int
    k: int
    tokens: tuple[int, ...]
    types: GemmTypes
    group_size: int = 128
    num_experts: int = 0
    top_k: int = 0
    per_slot: bool = False

    @property
    def held(self) -> PackedFormat:
        """The format of the weights."""
        return find_packed(self.types)

    @property
    def moe(self) -> bool:
        """Whether this is a Mixture-of-Experts layer."""
        return self.num_experts > 0

    def problem(self, tokens: int) -> Problem:
        """Return the GEMM of this layer for `tokens` tokens."""
        m, top_k = (tokens * self.top_k, 1) if self.per_slot else (tokens, self.top_k)
        return Problem(m, self.n, self.k, self.types, self.group_size, self.num_experts, top_k)

    def check(self) -> Workload:
        """Return this workload, or say what is wrong with it.

        Raises:
            InputError: A size makes no sense.
        """
        if self.n < 1 or self.k < 1 or not self.tokens or min(self.tokens) < 1:
            raise InputError(f"{self.name}: n, k and every token count must be at least 1")
        sizes = self.held.group_sizes
        if self.group_size not in sizes:
            raise InputError(
                f"{self.name}: group_size must be {' or '.join(map(str, sizes))} for {self.held.name} "
                f"(got {self.group_size})"
            )
        if (self.num_experts == 0) != (self.top_k == 0) or self.num_experts < 0:
            raise InputError(f"{self.name}: give num_experts and top_k together, or neither")
        if not 0 <= self.top_k <= self.num_experts:
            raise InputError(
                f"{self.name}: top_k must be at most num_experts {self.num_experts} (got {self.top_k})"
            )
        return self


def gemm_types(activations: str, weights: str = "u4b8") -> GemmTypes:
    """Return the element types of a format under some activations; outputs of 8-bit ones are bf16.

    Args:
        activations: Name of their type.
        weights: A name of `weights.FORMATS`.

    Raises:
        InputError: No such names.
        UnsupportedError: The format is not multiplied by such activations.
    """
    a, held = dtype(activations), find_format(weights)
    if a not in (*held.activations, *held.narrow_activations):
        known = ", ".join(one.name for one in (*held.activations, *held.narrow_activations))
        raise UnsupportedError(f"{weights} weights are multiplied by {known} activations (got {activations})")
    c = a if a in held.activations else BF16
    return GemmTypes(a, held.weight, held.scale_type(c), c)


def usual_group_size(types: GemmTypes) -> int:
    """Return the group size that such weights usually have: -1, if legal, under 8-bit activations."""
    sizes = find_packed(types).group_sizes
    return -1 if types.a.bits == 8 and -1 in sizes else sizes[0]


class _Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    n: int
    k: int
    tokens: tuple[int, ...] | None = None
    group_size: int | None = None
    num_experts: int = 0
    top_k: int = 0
    per_slot: bool = False


class _ShapeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layer: tuple[_Layer, ...]
    tokens: tuple[int, ...] = ()


def read_shapes(path: Path, types: GemmTypes, group_size: int) -> list[Workload]:
    """Read a shape file (`bench/README.md` describes it).

    Args:
        path: The file.
        types: Element types of all layers.
        group_size: Of layers that do not say theirs.

    Raises:
        ConfigError: The file cannot be read or a key is wrong; the message names file and key.
    """
    try:
        with path.open("rb") as file:
            data = msgspec.convert(tomllib.load(file), _ShapeFile)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    return [
        Workload(
            name=layer.name,
            n=layer.n,
            k=layer.k,
            tokens=layer.tokens or data.tokens or (MOE_TOKENS if layer.num_experts else DENSE_TOKENS),
            types=types,
            group_size=group_size if layer.group_size is None else layer.group_size,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            per_slot=layer.per_slot,
        ).check()
        for layer in data.layer
    ]


def parse_shape(text: str) -> tuple[int, int]:
    """Read `NxK`.

    Raises:
        InputError: The text is not two positive numbers joined by `x`.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"{text!r} is not a shape; write NxK, such as 4096x4096 (output x input features)")
    return int(match[1]), int(match[2])


def parse_counts(text: str) -> tuple[int, ...]:
    """Read token counts separated by commas or spaces, keeping order and dropping repeats.

    Raises:
        InputError: A word is not a positive number, or there is none.
    """
    words = [word for word in re.split(r"[,\s]+", text) if word]
    if not words or not all(re.fullmatch(r"[1-9]\d*", word) for word in words):
        raise InputError(f"{text!r} is not a list of token counts; write numbers such as 1,16,256")
    return tuple(dict.fromkeys(int(word) for word in words))


def read_model(
    path: Path, tp: int, tokens: tuple[int, ...] | None, activations: str | None
) -> list[Workload]:
    """Return the distinct quantized GEMMs of a model.

    Args:
        path: A Hugging Face `config.json`, or the folder that holds it.
        tp: Tensor-parallel size.
        tokens: Token counts; the usual ones for dense and MoE layers if None.
        activations: "bf16" or "f16"; the config's own type if None.

    Raises:
        InputError: Other activations.
        ConfigError: The config cannot be read or is not quantized.
        UnsupportedError: A layer's format has no kernel.
    """
    from ..models import layers, load_model

    if activations not in (None, "bf16", "f16"):
        raise InputError(f"a model's activations are bf16 or f16 (got {activations})")
    workloads: dict[Problem, Workload] = {}
    for layer in layers(load_model(path), tp, dtype(activations) if activations else None):
        problem = layer.problem(1)
        workloads.setdefault(
            problem,
            Workload(
                name=layer.name,
                n=problem.n,
                k=problem.k,
                tokens=tokens or (MOE_TOKENS if problem.moe else DENSE_TOKENS),
                types=problem.types,
                group_size=problem.group_size,
                num_experts=problem.num_experts,
                top_k=problem.top_k * layer.rows_per_token,
                per_slot=layer.rows_per_token > 1,
            ).check(),
        )
    return list(workloads.values())
