"""Which Machete kernels a generation holds: types x schedules, dealt over the part files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...errors import ConfigError
from ..heuristic import Rule, Tiling, chosen_over_m, unique_tilings
from ..heuristic_lint import Grid
from ..job import Job, Narrowing
from ..rule_file import DEFAULT, load_rules
from .cutlass import (
    SPELLINGS,
    DataType,
    EpilogueScheduleType,
    MixedInputKernelScheduleType,
    TileSchedulerType,
    named,
)
from .types import ImplConfig, PrepackTypeConfig, ScheduleConfig, TypeConfig

if TYPE_CHECKING:
    from ..narrow import Request

CATALOG = Path(__file__).parents[2] / "catalog" / "vllm" / "machete.toml"
ACTIVATIONS = {"f16": DataType.f16, "bf16": DataType.bf16, "int8": DataType.s8, "fp8": DataType.e4m3}


class TypeSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight type with what it is multiplied and scaled by.

    Args:
        format: The weight format, as `--formats` takes it.
        a: Activations.
        b: Weights.
        b_group_scale: Group scales; "a" for the activation's type.
        out: Output; "a" for the activation's type.
        accumulator: Accumulation.
        b_group_zeropoint: Group zero points; "a" for the activation's type.
        b_channel_scale: Channel scales.
        a_token_scale: Token scales.
        qqq: Whether these types are generated only on request.
    """

    format: str
    a: tuple[str, ...]
    b: str
    b_group_scale: tuple[str, ...]
    out: str
    accumulator: str
    b_group_zeropoint: str = "void"
    b_channel_scale: str = "void"
    a_token_scale: str = "void"
    qqq: bool = False


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data file.

    Args:
        parts: Files that the implementations are dealt over.
        kernel_schedule: Mainloop of every schedule.
        epilogue_schedule: Epilogue of every schedule.
        tile_scheduler: Tile scheduler of every schedule.
        types: In the generator's order.
    """

    parts: int
    kernel_schedule: str
    epilogue_schedule: str
    tile_scheduler: str
    types: tuple[TypeSet, ...]

    def schedule(self, tiling: Tiling) -> ScheduleConfig:
        """Return the schedule that computes with `tiling`."""
        return ScheduleConfig(
            tiling.tile_mn,
            tiling.cluster_mnk,
            MixedInputKernelScheduleType[self.kernel_schedule],
            EpilogueScheduleType[self.epilogue_schedule],
            TileSchedulerType[self.tile_scheduler],
        )


@dataclass(frozen=True)
class Impl:
    """One type combination as planned.

    Args:
        config: Its types, the schedules that are compiled, and the whole heuristic.
        format: The weight format, as `--formats` takes it.
        activation: The activations, as `--act` takes them.
        dropped: Schedules that a narrowed generation leaves out, in order.
    """

    config: ImplConfig
    format: str
    activation: str
    dropped: tuple[ScheduleConfig, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a generation holds.

    Args:
        impls: Type combinations with at least one schedule, in order.
        left_out: Type combinations that a narrowed generation leaves out altogether.
        parts: Files that the implementations are dealt over.
    """

    impls: tuple[Impl, ...]
    left_out: tuple[Impl, ...]
    parts: int


@cache
def load_catalog() -> Catalog:
    """Read the data file.

    Raises:
        ConfigError: It makes no sense; the message says where.
    """
    try:
        return msgspec.toml.decode(CATALOG.read_bytes(), type=Catalog)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{CATALOG}: {error}") from error


def make_plan(job: Job) -> Plan:
    """Plan a generation.

    Raises:
        ConfigError: The job's rule file, or a model config, makes no sense, or a rule asks for pingpong.
        InputError: The narrowing names what the release does not know.
    """
    catalog = load_catalog()
    rules = _load_rules(job.heuristic or DEFAULT)
    everything = [
        _impl(catalog, types, one, rules)
        for one in catalog.types
        if job.qqq or not one.qqq
        for types in type_configs(one)
    ]
    if not job.narrowing:
        return Plan(tuple(everything), (), catalog.parts)
    from ..narrow import check, requests

    check(job.narrowing, job.release)
    asked = requests(job.narrowing)
    narrowed = [_narrow(one, rules, job.narrowing, asked, catalog) for one in everything]
    return Plan(
        tuple(one for one in narrowed if one.config.schedules),
        tuple(one for one in narrowed if not one.config.schedules),
        catalog.parts,
    )


def _load_rules(path: Path) -> list[Rule]:
    rules = load_rules(path)
    for rule in rules:
        if rule.tiling.pingpong:
            raise ConfigError(
                f"{path}:{rule.line}: {rule.tiling} is for our own kernels: in a vLLM tree all schedules are "
                "cooperative, under stream-K, which CUTLASS's pingpong kernels refuse"
            )
    return rules


def prepack_types(impls: Iterable[Impl]) -> list[PrepackTypeConfig]:
    """Return what weights are packed for, without repeats, in order of first use."""
    found: dict[tuple[DataType, int, DataType], PrepackTypeConfig] = {}
    for impl in impls:
        types = impl.config.types
        convert = types.a if types.b_group_scale is DataType.void else types.b_group_scale
        bits = SPELLINGS[types.b].bits
        found.setdefault(
            (types.a, bits, convert), PrepackTypeConfig(types.a, bits, convert, types.accumulator)
        )
    return list(found.values())


def deal(impls: Sequence[Impl], parts: int) -> list[list[ImplConfig]]:
    """Deal the implementations over at most `parts` files: evenly, in order.

    Returns:
        For each file, the type combinations with those of their schedules that it implements.
    """
    pairs = [(impl.config, schedule) for impl in impls for schedule in impl.config.schedules]
    size = max(1, math.ceil(len(pairs) / parts))
    files = []
    for start in range(0, len(pairs), size):
        held: list[ImplConfig] = []
        for config, schedule in pairs[start : start + size]:
            if not held or held[-1].types != config.types:
                held.append(ImplConfig(config.types, [], config.heuristic))
            held[-1].schedules.append(schedule)
        files.append(held)
    return files


def type_configs(one: TypeSet) -> Iterable[TypeConfig]:
    """Yield the types of kernels that an entry of the data file stands for."""
    for a in one.a:
        for scale in one.b_group_scale:
            yield TypeConfig(
                a=DataType[a],
                b=named(one.b),
                b_group_scale=DataType[a if scale == "a" else scale],
                b_group_zeropoint=DataType[a if one.b_group_zeropoint == "a" else one.b_group_zeropoint],
                b_channel_scale=DataType[one.b_channel_scale],
                a_token_scale=DataType[one.a_token_scale],
                out=DataType[a if one.out == "a" else one.out],
                accumulator=DataType[one.accumulator],
            )


def _impl(catalog: Catalog, types: TypeConfig, one: TypeSet, rules: Sequence[Rule]) -> Impl:
    config = ImplConfig(
        types,
        [catalog.schedule(tiling) for tiling in unique_tilings(rules)],
        [(rule.condition, catalog.schedule(rule.tiling)) for rule in rules],
    )
    activation = next(name for name, a in ACTIVATIONS.items() if a is types.a)
    return Impl(config, one.format, activation)


def _narrow(
    impl: Impl, rules: Sequence[Rule], narrowing: Narrowing, asked: Sequence[Request] | None, catalog: Catalog
) -> Impl:
    """Keep the schedules that the heuristic chooses for some request of these types."""
    reached: set[Tiling] = set()
    if asked is None:
        if (not narrowing.formats or impl.format in narrowing.formats) and (
            not narrowing.activations or impl.activation in narrowing.activations
        ):
            reached = _reached_by_any_shape(rules, narrowing.max_tokens)
    else:
        for request in asked:
            if (request.format, request.activation) == (
                impl.format,
                impl.activation,
            ) and not request.num_experts:
                reached |= set(chosen_over_m(rules, request.max_tokens, request.n, request.k))
    wanted = {catalog.schedule(tiling) for tiling in reached}
    schedules = impl.config.schedules
    return replace(
        impl,
        config=replace(impl.config, schedules=[one for one in schedules if one in wanted]),
        dropped=tuple(one for one in schedules if one not in wanted),
    )


def _reached_by_any_shape(rules: Sequence[Rule], max_tokens: int | None) -> set[Tiling]:
    grid = Grid(rules)
    return {
        rules[winner].tiling
        for cell, winner in grid.winners.items()
        if winner is not None and (max_tokens is None or grid.sizes(cell)[0] <= max_tokens)
    }
