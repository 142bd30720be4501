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
    Fields,
    Gemm,
    Model,
    WeightFormat,
    check_gemm,
    choose_types,
    gemm_types,
    gemms,
    load_model,
    read_dtype,
)
from ..select import spans
from .declared import Declared, check_quantized
from .folder import Checkpoint
from .modules import Linear, template
from .names import group, is_complete, is_expert, place
from .stored import UNQUANTIZED

_BY_NAME = "sizes are not checked, and GEMMs are those that names tell, for one GPU"


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
        return None, f"architecture {named} is not built yet: {_BY_NAME}"
    try:
        # Sizes alone are wanted, whatever the format: how weights are stored is told from the tensors.
        return load_model(checkpoint.folder, stored=WeightFormat(U4B8, -1)), ""
    except UnsupportedError as error:
        return None, f"{error}: {_BY_NAME}"


def check_sizes(model: Model, linears: Mapping[str, Linear], declared: Declared) -> None:
    """Compare every projection with the sizes of the model's config.

    Raises:
        ConfigError: A projection is missing, or there is one too many.
        WeightError: A size is not what the config says, or a projection is not quantized although it says so.
    """
    known: set[str] = set()
    for index in range(model.num_layers):
        for gemm in gemms(model, index, 1):
            missing = [name for name in gemm.modules if name not in linears]
            if missing:
                raise ConfigError(
                    f"{model.file} asks for {missing[0]}, but no safetensors file has its weights"
                    + (f" ({len(missing)} of this GEMM are missing)" if len(missing) > 1 else "")
                )
            _check_gemm(model, gemm, [linears[name] for name in gemm.modules], declared)
            known.update(gemm.modules)
    templates = {template(name) for name in known}
    extra = next((name for name in linears if name not in known and template(name) in templates), None)
    if extra is not None:
        raise ConfigError(f"{model.file} has no place for {extra}, which the safetensors files hold")


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


def list_gemms(
    model: Model | None, linears: Mapping[str, Linear], declared: Declared, config: Fields, tp: int
) -> list[Gemm]:
    """Return the GEMMs that engines issue for a checkpoint on one GPU.

    Those of the model come first. On a single GPU others follow, which names alone tell: of quantized layers
    that the model does not name, such as lm_head, and of models that are not known; and projections that are
    stored in different ways are GEMMs of their own.

    Args:
        model: The sizes; None if they are not known.
        linears: As `check_sizes` has checked them.
        declared: The quantization.
        config: The config.
        tp: Tensor-parallel size.

    Raises:
        ConfigError: A field of the config is wrong.
        UnsupportedError: The model cannot be split into `tp`.
    """
    found: list[Gemm] = []
    if model is not None:
        for index in range(model.num_layers):
            for gemm in gemms(model, index, tp):
                members = [linears[name] for name in gemm.modules]
                apart = tp == 1 and not gemm.num_experts and not _alike(members, declared)
                found += [_make_gemm(one.name, [one]) for one in members] if apart else [gemm]
    if tp > 1:
        return found
    named = {name for gemm in found for name in gemm.modules}
    left = [one for one in linears.values() if one.name not in named and one.stored.format != UNQUANTIZED]
    top_k = config.integer("num_experts_per_tok", 0, least=0)
    for name, members in group(left).items():
        whole = is_expert(members[0]) or (is_complete(name, members) and _alike(members, declared))
        found += [_make_gemm(name, members, top_k)] if whole else [_make_gemm(o.name, [o]) for o in members]
    return found


def _alike(members: Sequence[Linear], declared: Declared) -> bool:
    """Return whether modules are stored in one way, as those of a GEMM must be."""
    first = members[0].stored
    wanted = (first.format, first.bits, first.k, first.bias)
    if any((one.stored.format, one.stored.bits, one.stored.k, one.stored.bias) != wanted for one in members):
        return False
    try:
        if declared.quantization is not None:
            declared.quantization.stored([one.name for one in members])
    except UnsupportedError:
        return len(members) == 1
    return True


def _make_gemm(name: str, members: Sequence[Linear], top_k: int = 0) -> Gemm:
    """Return the GEMM of modules on one GPU; each token visits `top_k` experts, 0 if that is not known."""
    first = members[0].stored
    experts = [place(one)[0] for one in members]
    words = [part for part in name.split(".") if not part.isdigit()]
    made = Gemm(
        ".".join(words[-2:]),
        sum(one.stored.n for one, expert in zip(members, experts, strict=True) if expert == experts[0]),
        first.k,
        tuple(one.name for one in members),
        row_parallel=False,
        bias=first.bias,
    )
    if not is_expert(members[0]):
        return made
    made = replace(made, num_experts=first.num_experts or len(set(experts)), top_k=top_k)
    if top_k and words[-1] == "w2":  # its input is one row per (token, expert) pair
        return replace(made, top_k=1, rows_per_token=top_k)
    return made


def serve(
    found: Iterable[Gemm],
    linears: Mapping[str, Linear],
    declared: Declared,
    config: Fields,
    *,
    archs: Iterable[Arch],
    tp: int,
    act: DType | None,
    max_tokens: int,
) -> list[Use]:
    """Tell for every GEMM which kernels serve 1 to `max_tokens` tokens, or why none does.

    Args:
        found: The GEMMs, as `list_gemms` returns them.
        linears: The layers.
        declared: The quantization.
        config: The config.
        archs: GPU targets.
        tp: Tensor-parallel size.
        act: Activations' type; what the config says if None.
        max_tokens: Most tokens of a step.
    """
    targets = list(archs)
    kinds: Counter[tuple[Gemm, str, Problem | str]] = Counter()
    for gemm in found:
        stored = {linears[name].stored for name in gemm.modules}
        words = " or ".join(sorted({f"{one}, a scale per {one.scales}" for one in stored}))
        if all(one.format == UNQUANTIZED for one in stored):
            asked: Problem | str = "not quantized: left to a dense GEMM"
        else:
            asked = _ask(gemm, declared, config, tp=tp, act=act)
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


def _ask(gemm: Gemm, declared: Declared, config: Fields, *, tp: int, act: DType | None) -> Problem | str:
    """Return the problem to ask kernels for, of one row; or why none can be asked."""
    if declared.quantization is None:
        return declared.why
    if gemm.num_experts and not gemm.top_k:
        return f"{config.file} does not say how many experts a token visits (num_experts_per_tok)"
    name = config.file.resolve().parent.name
    try:
        wanted = declared.quantization.stored(gemm.modules)
        if wanted is None:
            return "not quantized, by the config"
        check_gemm(name, gemm, wanted, tp)
        own, output = choose_types(act, config.file, read_dtype(config))
    except (ConfigError, UnsupportedError) as error:
        return str(error).removeprefix(f"{gemm.modules[0]}: ").removeprefix(f"{name}: ")
    types = gemm_types(own, wanted, output)
    return Problem(1, gemm.n, gemm.k, types, wanted.group_size, gemm.num_experts, gemm.top_k)


def _answer(asked: Problem | str, rows_per_token: int, arch: Arch, max_tokens: int) -> Answer:
    """Return which kernels serve a GEMM on a target, chosen for the multiprocessors of an H100 SXM."""
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
