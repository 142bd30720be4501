"""The documented configs of Machete's generator, and the names it derives from them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TypeVar

from .cutlass import (
    AnyType,
    DataType,
    EpilogueScheduleType,
    MixedInputKernelScheduleType,
    TileSchedulerType,
    VLLMDataType,
)

_TERSE = {
    "KernelTmaWarpSpecializedCooperative": "TmaMI_",
    "TmaWarpSpecializedCooperative": "TmaCoop",
    "StreamKScheduler": "streamK",
}
_SIG = re.compile(r"(\d+)x(\d+)_(\d+)x(\d+)x(\d+)_(TmaMI_|[A-Za-z]+)_([A-Za-z]+)_([A-Za-z]+)")
_Tag = TypeVar("_Tag", MixedInputKernelScheduleType, EpilogueScheduleType, TileSchedulerType)


@dataclass(frozen=True)
class ScheduleConfig:
    """How one kernel computes: its tile, its cluster and its three CUTLASS schedules.

    Args:
        tile_shape_mn: CTA tile of the transposed problem: output features, tokens.
        cluster_shape_mnk: CTAs of a cluster along each mode.
        kernel_schedule: Mainloop.
        epilogue_schedule: Epilogue.
        tile_scheduler: How tiles are dealt to CTAs.
    """

    tile_shape_mn: tuple[int, int]
    cluster_shape_mnk: tuple[int, int, int]
    kernel_schedule: MixedInputKernelScheduleType
    epilogue_schedule: EpilogueScheduleType
    tile_scheduler: TileSchedulerType


@dataclass(frozen=True)
class TypeConfig:
    """The element types of one kernel; `DataType.void` for what it does not take.

    Args:
        a: Activations.
        b: Weights, as stored.
        b_group_scale: Scales, one for each group of weights along K.
        b_group_zeropoint: Zero points, likewise.
        b_channel_scale: Scales, one for each output feature.
        a_token_scale: Scales, one for each token.
        out: Output.
        accumulator: Accumulation.
    """

    a: DataType
    b: DataType | VLLMDataType
    b_group_scale: DataType
    b_group_zeropoint: DataType
    b_channel_scale: DataType
    a_token_scale: DataType
    out: DataType
    accumulator: DataType


@dataclass(frozen=True)
class PrepackTypeConfig:
    """The types that weights are packed for.

    Args:
        a: Activations.
        b_num_bits: Bits of a weight; its bias does not matter to packing.
        convert: What weights are converted to before they are multiplied.
        accumulator: Accumulation.
    """

    a: DataType
    b_num_bits: int
    convert: DataType
    accumulator: DataType


@dataclass
class ImplConfig:
    """One type combination, the schedules compiled for it, and how one is chosen.

    Args:
        types: Element types.
        schedules: The schedules that are compiled, without repeats.
        heuristic: Ordered (condition, schedule); the first condition that holds wins, None always holds.
    """

    types: TypeConfig
    schedules: list[ScheduleConfig]
    heuristic: list[tuple[str | None, ScheduleConfig]]


def generate_sch_sig(schedule_config: ScheduleConfig) -> str:
    """Return a schedule's full name, from which every field can be read."""
    tile = "x".join(map(str, schedule_config.tile_shape_mn))
    cluster = "x".join(map(str, schedule_config.cluster_shape_mnk))
    tags = (
        schedule_config.kernel_schedule,
        schedule_config.epilogue_schedule,
        schedule_config.tile_scheduler,
    )
    return "_".join([tile, cluster, *(str(tag.value).rpartition("::")[2] for tag in tags)])


def generate_terse_sch_sig(schedule_config: ScheduleConfig) -> str:
    """Return a schedule's short name, used in symbols and in the operator's `schedule` argument."""
    tile, cluster, *tags = generate_sch_sig(schedule_config).split("_")
    return "_".join([tile, cluster, *(_TERSE.get(tag, tag) for tag in tags)])


def parse_sch_sig(name: str) -> ScheduleConfig | None:
    """Read a schedule's name, full or short, back; None if it names none."""
    match = _SIG.fullmatch(name)
    if match is None:
        return None
    kernel = _find_tag(MixedInputKernelScheduleType, match[6])
    epilogue = _find_tag(EpilogueScheduleType, match[7])
    scheduler = _find_tag(TileSchedulerType, match[8])
    if kernel is None or epilogue is None or scheduler is None:
        return None
    n, m, *cluster = (int(match[at]) for at in range(1, 6))
    return ScheduleConfig((n, m), (cluster[0], cluster[1], cluster[2]), kernel, epilogue, scheduler)


def _find_tag(kind: type[_Tag], word: str) -> _Tag | None:
    for one in kind:
        tag = str(one.value).rpartition("::")[2]
        if word in (tag, _TERSE.get(tag)):
            return one
    return None


def generate_type_signature(kernel_types: TypeConfig) -> str:
    """Return the short names of the eight types, in order and without a separator."""
    return "".join(_short(kernel_types, field.name) for field in fields(kernel_types))


def generate_type_option_name(kernel_types: TypeConfig) -> str:
    """Return the types as an error lists them: `a_type=f16, b_type=u4b8, with_group_scale_type=f16, ...`."""
    return ", ".join(
        f"{re.sub('^b_', 'with_', field.name)}_type={_short(kernel_types, field.name)}"
        for field in fields(kernel_types)
    )


def _short(kernel_types: TypeConfig, field: str) -> str:
    value: AnyType = getattr(kernel_types, field)
    return str(value.value)
