"""The quantized GEMMs of a model, as engines issue them on one GPU of a tensor-parallel group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..config import GemmTypes, Problem, parse_types
from ..dtypes import BF16, F16, DType
from ..errors import ConfigError, InputError
from .activations import (
    Chosen,
    NarrowActivations,
    agree,
    check_folded,
    choose_activations,
    fold_format,
    read_narrow,
)
from .gemm import Gemm, check_gemm, gemms
from .methods import PACKED_METHOD
from .model import Model
from .quantization import WeightFormat


@dataclass(frozen=True)
class Layer:
    """One quantized GEMM of a model on one GPU.

    Args:
        model: The model's name.
        tp: Tensor-parallel size.
        name: Its place, as `Gemm.name`; followed by the group size (`qkv_g32`), the activations' type and the
            like, as far as they differ, where a model has it in several ways.
        n: Output features on one GPU, of one expert.
        k: Input features on one GPU.
        types: `str(GemmTypes)`.
        group_size: Weights along k that share a scale; -1 for channel scales.
        count: How many decoder layers have it.
        num_experts: 0 for a dense layer.
        top_k: Experts that each row visits; 0 for a dense layer.
        rows_per_token: Rows of A for each token: the model's top_k for w2, whose input is one row per
            (token, expert) pair, else 1.
        bias: Whether a bias is added.
        ordered: Whether activations are brought into another order of features before it (act-order).
    """

    model: str
    tp: int
    name: str
    n: int
    k: int
    types: str
    group_size: int
    count: int
    num_experts: int = 0
    top_k: int = 0
    rows_per_token: int = 1
    bias: bool = False
    ordered: bool = False

    @property
    def id(self) -> str:
        """Its name in a plan: `MODEL/tpTP/NAME`."""
        return f"{self.model}/tp{self.tp}/{self.name}"

    def problem(self, tokens: int) -> Problem:
        """Return the GEMM that a step of `tokens` tokens issues."""
        return Problem(
            m=tokens * self.rows_per_token,
            n=self.n,
            k=self.k,
            types=parse_types(self.types),
            group_size=self.group_size,
            num_experts=self.num_experts,
            top_k=self.top_k,
        )


_ACTIVATIONS = {"float16": F16, "bfloat16": BF16}


@dataclass(frozen=True)
class Found:
    """The quantized GEMMs of a model, and what was decided about their activations.

    Args:
        layers: In the order of a decoder layer.
        notes: Why inputs stay in 16 bits although 8 are asked for, in words.
    """

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


def layers(model: Model, tp: int = 1, act: DType | None = None) -> list[Layer]:
    """Return every quantized GEMM of a model as `find_layers` does, for activations of one type."""
    return list(find_layers(model, tp, act).layers)


def find_layers(
    model: Model,
    tp: int = 1,
    act: DType | None = None,
    *,
    narrow_activations: NarrowActivations = False,
    fused: bool = True,
    why_unserved: Callable[[Problem], str | None] = lambda problem: None,
) -> Found:
    """Find every quantized GEMM of a model.

    Args:
        model: From `load_model`.
        tp: Tensor-parallel size.
        act: Activations' type, of 16 or 8 bits; what the model's config says if None.
        narrow_activations: As `billhook.load` takes it: whether GEMMs whose inputs the checkpoint quantizes
            multiply 8-bit activations, and scales are folded. Then `act` has 16 bits.
        fused: Whether q, k and v, and gate and up, are one GEMM, as engines have it; else each is its own, as
            in models of `billhook.load`.
        why_unserved: Tells why no kernel serves a GEMM of 8-bit activations; those stay in 16 bits.

    Raises:
        InputError: `tp` is less than 1, `narrow_activations` is another word, or `act` has 8 bits beside it.
        ConfigError: No layer is quantized, or the activations' type is neither given nor known.
        UnsupportedError: The model cannot be split into `tp`, a layer's format is not built yet, no kernel
            serves folded weights, or there are no scales to fold.
    """
    if tp < 1:
        raise InputError(f"the tensor-parallel size must be at least 1 (got {tp})")
    narrow, fold = read_narrow(narrow_activations)
    act, output = choose_types(act, model.file, model.dtype)
    if narrow and act.bits == 8:
        raise InputError(
            f"{act} inputs of every layer leave the checkpoint nothing to say; leave out their type (--act), "
            "or narrow_activations (--narrow-activations, --fold)"
        )
    counts: Counter[_Use] = Counter()
    wide: dict[WeightFormat, list[str]] = {}
    for index in range(model.num_layers):
        found = list(_read(model, gemms(model, index, tp, fused=fused), tp, fold))
        chosen = [Chosen(act)] * len(found)
        if act.bits == 16:
            chosen = _choose(found, narrow, output, why_unserved)
        for (gemm, stored), one in zip(found, chosen, strict=True):
            counts[_Use(replace(gemm, modules=()), replace(stored, activations=None), one.narrow or act)] += 1
            if one.why_wide:
                wide.setdefault(stored, []).append(one.why_wide)
    if not counts:
        raise ConfigError(f"{model.file}: no layer is quantized, by its quantization_config; nothing to plan")
    if fold:
        check_folded(model.file, model.quantization.method, (use.stored for use in counts))
    notes = [
        f"inputs of {len(whys)} GEMMs of {stored.packed.name} weights stay in 16 bits: {whys[0]}"
        for stored, whys in wide.items()
    ]
    if narrow and not notes and all(use.a == act for use in counts):
        notes.append("inputs of all GEMMs stay in 16 bits: the config asks for no others that kernels take")
    in_order = sorted(counts, key=_rank)
    named = [
        Layer(
            model=model.name,
            tp=tp,
            name=_name(use, in_order),
            n=use.gemm.n,
            k=use.gemm.k,
            types=str(gemm_types(use.a, use.stored, output)),
            group_size=use.stored.group_size,
            count=counts[use],
            num_experts=use.gemm.num_experts,
            top_k=use.gemm.top_k,
            rows_per_token=use.gemm.rows_per_token,
            bias=use.gemm.bias,
            ordered=use.stored.ordered,
        )
        for use in in_order
    ]
    return Found(tuple(named), tuple(notes))


class _Use(NamedTuple):
    """A GEMM, how its weights are stored, and the type of its activations."""

    gemm: Gemm
    stored: WeightFormat
    a: DType


def _read(model: Model, found: Iterable[Gemm], tp: int, fold: bool) -> Iterator[tuple[Gemm, WeightFormat]]:
    """Yield the quantized ones of a decoder layer's GEMMs, and how they are stored."""
    for gemm in found:
        stored = model.quantization.stored(gemm.modules)
        if stored is None:
            continue
        check_gemm(model.name, gemm, stored, tp)
        if fold and model.quantization.method != PACKED_METHOD:
            stored = fold_format(gemm.modules[0], stored)
        yield gemm, stored


def _choose(
    found: Sequence[tuple[Gemm, WeightFormat]],
    narrow: bool,
    output: DType,
    why_unserved: Callable[[Problem], str | None],
) -> list[Chosen]:
    """Return the activations of a decoder layer's GEMMs."""

    def ask(gemm: Gemm, stored: WeightFormat, a: DType) -> str | None:
        types = gemm_types(a, stored, output)
        return why_unserved(
            Problem(1, gemm.n, gemm.k, types, stored.group_size, gemm.num_experts, gemm.top_k)
        )

    chosen = [choose_activations(stored, narrow, partial(ask, gemm, stored)) for gemm, stored in found]
    experts = [place for place, (gemm, _) in enumerate(found) if gemm.num_experts]
    agreed = agree([found[place][1] for place in experts], [chosen[place] for place in experts])
    for place, one in zip(experts, agreed, strict=True):
        chosen[place] = one
    return chosen


def _rank(use: _Use) -> tuple[object, ...]:
    """Return a key that sorts GEMMs by their place in a decoder layer."""
    return (_ORDER.index(use.gemm.name), *_suffixes(use.stored), str(use.a))


def _name(use: _Use, every: Iterable[_Use]) -> str:
    """Return a GEMM's name, with what tells it from the others of that name behind it."""
    variants = {(one.stored, one.a) for one in every if one.gemm.name == use.gemm.name}
    columns = zip(*(_suffixes(stored) for stored, _ in variants), strict=True)
    parts = zip(_suffixes(use.stored), columns, strict=True)
    told = [mine[1] for mine, all_of in parts if len(set(all_of)) > 1]
    if sum(stored == use.stored for stored, _ in variants) > 1:
        told.append(str(use.a))
    return "_".join([use.gemm.name, *told])


def _suffixes(stored: WeightFormat) -> tuple[tuple[int, str], ...]:
    """Return what may tell formats of one GEMM apart: keys to sort by, and how names spell them."""
    return (
        (stored.weight.bits, f"{stored.weight}"),
        (stored.group_size, f"g{stored.group_size}"),
        (int(stored.ordered), "ordered" if stored.ordered else "plain"),
        (int(stored.packed.folded), "folded" if stored.packed.folded else "exact"),
    )


def gemm_types(act: DType, stored: WeightFormat, output: DType) -> GemmTypes:
    """Return the types of the GEMM of activations of type `act` and a weight.

    Folded weights are not multiplied by activations of 16 bits, but by those quantized to 8.
    """
    held = stored.packed
    if held.folded and act.bits == 16:
        (act,) = held.narrow_activations
    return GemmTypes(act, stored.weight, stored.scale or output, output)


def choose_types(act: DType | None, file: Path, dtype: str) -> tuple[DType, DType]:
    """Return the types of activations and output, which are one unless activations have 8 bits.

    Args:
        act: Activations' type; what the config says if None. Beside 8-bit ones the output has the config's.
        file: The config.
        dtype: As `read_dtype` returns it.

    Raises:
        ConfigError: The config is asked, and names no type that kernels have.
    """
    if act is not None and act.bits == 16:
        return act, act
    own = activations_type(file, dtype)
    return act or own, own


_ORDER = (
    *("qkv", "q", "k", "v", "o", "gate_up", "gate", "up", "down", "w13", "w2"),
    *("shared_gate_up", "shared_gate", "shared_up", "shared_down"),
)


def activations_type(file: Path, dtype: str) -> DType:
    """Return the activations' type that a model's config names.

    Args:
        file: The config.
        dtype: As `read_dtype` returns it.

    Raises:
        ConfigError: It names none that kernels take.
    """
    if dtype not in _ACTIVATIONS:
        raise ConfigError(
            f"{file}: field dtype (or torch_dtype) must be float16 or bfloat16 (got {dtype!r}); "
            "or choose the activations' type (--act f16, --act bf16)"
        )
    return _ACTIVATIONS[dtype]
