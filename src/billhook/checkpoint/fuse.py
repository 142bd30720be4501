"""Quantized modules that are one GEMM by their names (`names.py`) and by how they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..dtypes import E4M3FN
from ..errors import UnsupportedError, WeightError
from ..formats.order import Order, find_order
from ..formats.packed import tensor_shapes
from ..models import Quantization, WeightFormat
from ..weights import PackedFormat
from .modules import Linear
from .names import EXPERT, group, is_complete, is_expert, leaf, place
from .read import read_global_scale, read_named
from .stored import UNQUANTIZED


@dataclass(frozen=True)
class Part:
    """A module that is part of a GEMM.

    Args:
        name: Its full name; `*` stands for the number of an expert.
        n: Its output features.
    """

    name: str
    n: int


@dataclass(frozen=True)
class Fused:
    """Quantized modules that are one GEMM.

    Args:
        name: That of its only module; or where its modules are, with qkv_proj, gate_up_proj, w13 or w2.
        parts: Its modules, in the order of its output features.
        k: Input features.
        num_experts: 0 for a dense layer.
        stored: How its weights are stored.
        bias: Whether it has a bias.
        ordered: Whether its input features are taken in another order (act-order).
        static: Whether its modules have static scales with which their inputs are quantized to 8 bits.
        linears: The modules of the checkpoint, those of an expert together; none in a packed folder.
    """

    name: str
    parts: tuple[Part, ...]
    k: int
    num_experts: int
    stored: WeightFormat
    bias: bool = False
    ordered: bool = False
    static: bool = False
    linears: tuple[Linear, ...] = field(default=(), compare=False)

    @property
    def n(self) -> int:
        """Output features, of one expert."""
        return sum(part.n for part in self.parts)

    @property
    def group_size(self) -> int:
        """Weights along k that share a scale; -1 for channel scales."""
        return self.stored.group_size

    @property
    def held(self) -> PackedFormat:
        """The packed format."""
        return self.stored.packed

    @property
    def format(self) -> str:
        """The packed format's name."""
        return self.held.name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the tensors of the packed weight."""
        return tensor_shapes(self.held, self.n, self.k, self.group_size, self.num_experts)


def fuse(linears: Iterable[Linear], quantization: Quantization) -> tuple[list[Fused], list[str]]:
    """Return the GEMMs of quantized modules, in the order of their first, and what stays apart, in words.

    Projections that cannot be one GEMM stay apart: those that are stored in different ways, in different
    orders of input features, or with different global scales, and those of which only some have a bias.

    Args:
        linears: A checkpoint's linear layers, in order.
        quantization: How they are stored, by the config.

    Raises:
        UnsupportedError: A format that is not built, experts that cannot be one GEMM, or a shape that kernels
            do not read.
        WeightError: An expert lacks a projection, or a value read to compare modules is wrong.
    """
    found: list[Fused] = []
    notes: list[str] = []
    for name, members in group(one for one in linears if one.stored.format != UNQUANTIZED).items():
        if is_expert(members[0]):
            found.append(_fuse_experts(name, members, quantization))
            continue
        why = _why_apart(name, members, quantization)
        if why is None:
            found.append(_make(name, members, members, quantization))
            continue
        notes += [f"{name} stays apart: {why}"] if why else []
        found += [_make(one.name, [one], [one], quantization) for one in members]
    return found, notes


def _why_apart(name: str, members: Sequence[Linear], quantization: Quantization) -> str | None:
    """Return why modules are no GEMM together, in words, "" if there is no other; None if they are one."""
    if name == members[0].name:
        return None
    if not is_complete(name, members):
        return ""
    try:
        wanted = quantization.stored([one.name for one in members])
    except UnsupportedError as error:
        return str(error)
    return _why_unlike(members, _known(wanted, members[0]))


def _why_unlike(members: Sequence[Linear], wanted: WeightFormat) -> str | None:
    """Return what keeps the modules of one expert, or of a dense layer, from being one GEMM."""
    first = members[0]
    for one in members[1:]:
        if one.stored.k != first.stored.k:
            return f"{first.name} has {first.stored.k} input features, {one.name} {one.stored.k}"
        if one.stored.bias != first.stored.bias:
            return f"only one of {first.name} and {one.name} has a bias"
        if one.stored.format != first.stored.format:
            return f"{first.name} is stored as {first.stored}, {one.name} as {one.stored}"
        if wanted.scale == E4M3FN:
            scales = read_global_scale(first.parts), read_global_scale(one.parts)
            if scales[0] != scales[1]:
                return (
                    f"{first.name} and {one.name} have different global scales, {scales[0]} and {scales[1]}"
                )
        if wanted.ordered and not np.array_equal(_order(one, wanted), _order(first, wanted)):
            return f"{first.name} and {one.name} have their input features in different orders"
    return None


def _order(one: Linear, wanted: WeightFormat) -> Order:
    """Return the order of a module's input features."""
    g_idx = one.parts.get("g_idx") or one.parts.get("weight_g_idx")
    order = None if g_idx is None else find_order(read_named(g_idx), one.stored.k, wanted.group_size)
    return np.arange(one.stored.k, dtype=np.int32) if order is None else order


def _fuse_experts(name: str, members: Sequence[Linear], quantization: Quantization) -> Fused:
    if members[0].stored.num_experts:
        return _make(name, members, members, quantization)
    experts: dict[int, list[Linear]] = {}
    for one in members:
        experts.setdefault(place(one)[0], []).append(one)
    leaves = dict.fromkeys(leaf(one.name) for one in members)
    where = name.rpartition(".")[0]
    for number in range(max(experts) + 1):
        for last in leaves:
            wanted_name = f"{where}.{number}.{last}"
            if not any(one.name == wanted_name for one in experts.get(number, ())):
                raise WeightError(f"{members[0].file}: {wanted_name} is missing beside {members[0].name}")
    wanted = _known(quantization.stored([one.name for one in members]), members[0])
    _check_alike(experts, wanted)
    return _make(name, members, experts[0], quantization)


def _check_alike(experts: Mapping[int, Sequence[Linear]], wanted: WeightFormat) -> None:
    """Refuse experts of a layer that are no GEMM together.

    Raises:
        UnsupportedError: They are not; says why.
    """
    first = experts[0]
    for members in experts.values():
        why = _why_unlike(members, wanted)
        for one, other in zip(members, first, strict=True):
            if one.stored != other.stored:
                why = f"{other.name} is {other.stored.n} x {other.stored.k}, {other.stored}; "
                why += f"{one.name} is {one.stored.n} x {one.stored.k}, {one.stored}"
            if wanted.ordered and not np.array_equal(_order(one, wanted), _order(other, wanted)):
                why = f"{other.name} and {one.name} have their input features in different orders"
        if why:
            raise UnsupportedError(
                f"experts of a layer must be alike to be one GEMM: {why}; quantize the model again with its "
                "experts alike, gate and up of each under one global scale"
            )


def _make(name: str, members: Sequence[Linear], parts: Sequence[Linear], quantization: Quantization) -> Fused:
    """Return the GEMM of modules, of which those of one expert are its parts."""
    first = members[0]
    wanted = _known(quantization.stored([first.name]), first)
    num_experts = first.stored.num_experts or (len(members) // len(parts) if is_expert(first) else 0)
    made = Fused(
        name=name,
        parts=tuple(Part(EXPERT.sub(r"\g<place>.*.\g<leaf>", one.name), one.stored.n) for one in parts),
        k=first.stored.k,
        num_experts=num_experts,
        stored=wanted,
        bias=first.stored.bias,
        ordered=wanted.ordered and bool((_order(first, wanted)[1:] < _order(first, wanted)[:-1]).any()),
        static=wanted.activations is not None and all(map(_has_input_scale, members)),
        linears=tuple(members),
    )
    try:
        _ = made.shapes
    except WeightError as error:
        raise UnsupportedError(f"{first.file}: {name}: {error}") from error
    return made


def _has_input_scale(one: Linear) -> bool:
    """Return whether a module has a static scale of its inputs, and no zero point of theirs."""
    return "input_scale" in one.parts and "input_zero_point" not in one.parts


def _known(wanted: WeightFormat | None, one: Linear) -> WeightFormat:
    if wanted is None:
        raise UnsupportedError(f"{one.name} is quantized, but the config does not say how")
    return wanted
