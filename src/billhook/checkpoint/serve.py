"""Check a checkpoint's layers against its model's sizes, and tell which kernels serve its GEMMs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ..arch import Arch
from ..config import Problem
from ..dtypes import U4B8, DType
from ..errors import ConfigError, UnsupportedError, WeightError
from ..models import (
    KNOWN,
    Gemm,
    Model,
    WeightFormat,
    activations_type,
    check_gemm,
    gemm_types,
    gemms,
    load_model,
)
from ..select import spans
from .declared import Declared, check_quantized
from .folder import Checkpoint
from .modules import Linear, template
from .stored import UNQUANTIZED, Stored


@dataclass(frozen=True)
class Serving:
    """A kernel that serves a GEMM.

    Args:
        first: Fewest tokens.
        last: Most tokens.
        kernel: The kernel's name.
    """

    first: int
    last: int
    kernel: str


@dataclass(frozen=True)
class Answer:
    """Which kernels serve a GEMM on a GPU target, by tokens; or why none does."""

    arch: Arch
    kernels: tuple[Serving, ...]
    why: str = ""


@dataclass(frozen=True)
class Use:
    """A GEMM that engines issue for a checkpoint on one GPU.

    Args:
        name: As `models.Layer.name`.
        n: Output features on one GPU, of one expert.
        k: Input features on one GPU.
        num_experts: 0 for a dense layer.
        stored: How its modules are stored, in words.
        count: How many decoder layers have it.
        answers: For each target.
    """

    name: str
    n: int
    k: int
    num_experts: int
    stored: str
    count: int
    answers: tuple[Answer, ...]


def read_model(checkpoint: Checkpoint, declared: Declared) -> tuple[Model | None, str]:
    """Return the model that a checkpoint's config describes, or None and why its GEMMs are not known.

    Raises:
        ConfigError: A field of the config is missing or wrong.
    """
    architectures = checkpoint.config.texts("architectures")
    if not architectures or architectures[0] not in KNOWN:
        named = repr(architectures[0]) if architectures else "that is not named"
        why = f"no kernels: architecture {named} is not built yet, and its sizes are not checked"
        return None, f"{why}; {declared.why}" if declared.why else why
    try:
        # Sizes alone are wanted, whatever the format: how weights are stored is told from the tensors.
        return load_model(checkpoint.folder, stored=WeightFormat(U4B8, -1)), ""
    except UnsupportedError as error:
        return None, f"no kernels, and sizes are not checked: {error}"


def check_sizes(model: Model, linears: Mapping[str, Linear], declared: Declared) -> dict[str, str]:
    """Compare every projection with the sizes of the model's config.

    Returns:
        The name of the GEMM of each module.

    Raises:
        ConfigError: A projection is missing, or there is one too many.
        WeightError: A size is not what the config says, or a projection is not quantized although it says so.
    """
    known: dict[str, str] = {}
    for index in range(model.num_layers):
        for gemm in gemms(model, index, 1):
            missing = [name for name in gemm.modules if name not in linears]
            if missing:
                raise ConfigError(
                    f"{model.file} asks for {missing[0]}, but no safetensors file has its weights"
                    + (f" ({len(missing)} of this GEMM are missing)" if len(missing) > 1 else "")
                )
            _check_gemm(model, gemm, [linears[name] for name in gemm.modules], declared)
            known.update(dict.fromkeys(gemm.modules, gemm.name))
    templates = {template(name) for name in known}
    extra = next((name for name in linears if name not in known and template(name) in templates), None)
    if extra is not None:
        raise ConfigError(f"{model.file} has no place for {extra}, which the safetensors files hold")
    return known


def _check_gemm(model: Model, gemm: Gemm, linears: Sequence[Linear], declared: Declared) -> None:
    for one in linears:
        if one.stored.k != gemm.k:
            raise WeightError(
                f"{one.name} has {one.stored.k} input features; by {model.file} it has {gemm.k}"
            )
        if gemm.bias and not one.stored.bias:
            raise WeightError(f"{one.name} has no bias tensor; by {model.file} it has a bias")
        check_quantized(declared, one.name, one.stored)
    n = sum(one.stored.n * max(1, one.stored.num_experts) for one in linears)
    wanted = gemm.n * max(1, gemm.num_experts)
    if n != wanted:
        names = linears[0].name if len(linears) == 1 else f"{linears[0].name} to {linears[-1].name} together"
        raise WeightError(f"{names}: {n} output features; by {model.file} it must be {wanted}")


def serve(
    model: Model,
    linears: Mapping[str, Linear],
    declared: Declared,
    *,
    archs: Iterable[Arch],
    tp: int,
    act: DType | None,
    max_tokens: int,
) -> list[Use]:
    """Tell for every GEMM which kernels serve 1 to `max_tokens` tokens, or why none does.

    Args:
        model: The sizes.
        linears: As `check_sizes` has checked them.
        declared: The quantization.
        archs: GPU targets.
        tp: Tensor-parallel size.
        act: Activations' type; what the model's config says if None.
        max_tokens: Most tokens of a step.

    Raises:
        ConfigError: The activations' type is neither given nor known.
        UnsupportedError: The model cannot be split into `tp`.
    """
    act = act or activations_type(model)
    targets = list(archs)
    kinds: Counter[tuple[Gemm, str, Problem | str]] = Counter()
    for index in range(model.num_layers):
        for gemm in gemms(model, index, tp):
            stored = {linears[name].stored for name in gemm.modules}
            asked = _ask(model, gemm, stored, declared, tp=tp, act=act)
            words = " or ".join(sorted({f"{one}, a scale per {one.scales}" for one in stored}))
            kinds[replace(gemm, modules=()), words, asked] += 1
    return [
        Use(
            gemm.name,
            gemm.n,
            gemm.k,
            gemm.num_experts,
            words,
            count,
            tuple(_answer(asked, gemm.rows_per_token, arch, max_tokens) for arch in targets),
        )
        for (gemm, words, asked), count in kinds.items()
    ]


def _ask(
    model: Model, gemm: Gemm, stored: set[Stored], declared: Declared, *, tp: int, act: DType
) -> Problem | str:
    """Return the problem to ask kernels for, of one row; or why none can be asked."""
    if all(one.format == UNQUANTIZED for one in stored):
        return "not quantized: left to a dense GEMM"
    if declared.quantization is None:
        return declared.why
    try:
        wanted = declared.quantization.stored(gemm.modules)
        if wanted is None:
            return "not quantized, by the config"
        check_gemm(model, gemm, wanted, tp)
    except UnsupportedError as error:
        return str(error).removeprefix(f"{gemm.modules[0]}: ").removeprefix(f"{model.name}: ")
    types = gemm_types(act, wanted)
    return Problem(1, gemm.n, gemm.k, types, wanted.group_size, gemm.num_experts, gemm.top_k)


def _answer(asked: Problem | str, rows_per_token: int, arch: Arch, max_tokens: int) -> Answer:
    if isinstance(asked, str):
        return Answer(arch, (), asked)
    try:
        found = spans(asked, max_tokens * rows_per_token, arch)
    except UnsupportedError as error:
        return Answer(arch, (), str(error))
    kernels = []
    for name, run in groupby(found, key=lambda span: span.choice.config.name):
        same = list(run)
        # Steps have whole tokens; a kernel for fewer rows than the next token brings serves none.
        first, last = -(-same[0].first // rows_per_token), same[-1].last // rows_per_token
        if first <= last:
            kernels.append(Serving(first, last, name))
    return Answer(arch, tuple(kernels))
