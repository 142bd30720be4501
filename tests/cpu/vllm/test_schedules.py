"""Documented schedules select kernels: every field means something, and what has no kernel is told why."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from cpu.vllm.machete_table import SCHEDULES, TERSE

from billhook.config import parse_types
from billhook.families import illegal as kernel_illegal
from billhook.vllm.machete import (
    EpilogueScheduleType,
    MixedInputKernelScheduleType,
    ScheduleConfig,
    TileSchedulerType,
    generate_sch_sig,
    generate_terse_sch_sig,
)
from billhook.vllm.machete.schedules import (
    illegal,
    schedule_kernel,
    schedules,
    splits,
    tiling_schedule,
)
from billhook.vllm.machete.types import parse_sch_sig
from billhook.vllm.rule_file import parse_tiling

BF16 = parse_types("bf16_u4b8_bf16_bf16")
COOPERATIVE = ScheduleConfig(
    (128, 128),
    (2, 1, 1),
    MixedInputKernelScheduleType.TmaWarpSpecializedCooperative,
    EpilogueScheduleType.TmaWarpSpecializedCooperative,
    TileSchedulerType.StreamK,
)
PINGPONG = replace(
    COOPERATIVE,
    tile_shape_mn=(128, 64),
    kernel_schedule=MixedInputKernelScheduleType.TmaWarpSpecializedPingpong,
    epilogue_schedule=EpilogueScheduleType.TmaWarpSpecialized,
)
TOGETHER = replace(COOPERATIVE, tile_shape_mn=PINGPONG.tile_shape_mn)
EVERY = [  # of a tile that both have
    replace(TOGETHER, kernel_schedule=kernel, epilogue_schedule=epilogue, tile_scheduler=scheduler)
    for kernel, epilogue, scheduler in product(
        MixedInputKernelScheduleType, EpilogueScheduleType, TileSchedulerType
    )
]


def test_every_documented_schedule_is_a_kernel_of_that_tile_and_cluster() -> None:
    documented = list(schedules().items())[: len(SCHEDULES)]
    assert [name for name, _ in documented] == [f"{tiling}_{TERSE}" for tiling in SCHEDULES]
    for (_, schedule), group in product(documented, (-1, 32, 64, 128)):
        config, why_not = schedule_kernel(schedule, BF16, group)
        assert why_not is None
        assert kernel_illegal(config) is None
        tile = config.tile
        assert (tile.tile_n, tile.tile_m) == schedule.tile_shape_mn
        assert (tile.cluster, 1, 1) == schedule.cluster_shape_mnk
        assert (config.family, tile.pingpong, splits(schedule)) == ("machete", False, True)


def test_schedules_select_the_kernel_and_whether_tiles_are_split() -> None:
    together, alone = (schedule_kernel(one, BF16, 128)[0] for one in (TOGETHER, PINGPONG))
    assert alone == replace(together, tile=replace(together.tile, pingpong=True, stages=alone.tile.stages))
    whole = replace(PINGPONG, tile_scheduler=TileSchedulerType.Persistent)
    assert schedule_kernel(whole, BF16, 128) == (alone, None)
    assert [splits(one) for one in (COOPERATIVE, PINGPONG, whole)] == [True, True, False]


def test_only_pairs_of_mainloop_and_epilogue_that_fit_exist() -> None:
    legal = {(one.kernel_schedule.name, one.epilogue_schedule.name) for one in EVERY if illegal(one) is None}
    assert legal == {
        ("TmaWarpSpecializedCooperative", "TmaWarpSpecializedCooperative"),
        ("TmaWarpSpecializedPingpong", "TmaWarpSpecialized"),
    }
    assert len([one for one in EVERY if illegal(one) is None]) == 4  # under either scheduler
    for one in EVERY:
        assert schedule_kernel(one, BF16, 128)[1] == illegal(one)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (
            replace(COOPERATIVE, kernel_schedule=MixedInputKernelScheduleType.TmaWarpSpecialized),
            ["Cooperative or KernelTmaWarpSpecializedPingpong", "got KernelTmaWarpSpecialized)"],
        ),
        (
            replace(COOPERATIVE, epilogue_schedule=EpilogueScheduleType.TmaWarpSpecialized),
            ["KernelTmaWarpSpecializedCooperative is TmaWarpSpecializedCooperative: all", "got TmaWarp"],
        ),
        (
            replace(PINGPONG, epilogue_schedule=EpilogueScheduleType.TmaWarpSpecializedCooperative),
            ["KernelTmaWarpSpecializedPingpong is TmaWarpSpecialized: one", "got TmaWarpSpecializedCoop"],
        ),
        (
            replace(PINGPONG, epilogue_schedule=EpilogueScheduleType.NoSmemWarpSpecialized),
            ["shared memory", "got NoSmemWarpSpecialized"],
        ),
        (replace(PINGPONG, cluster_shape_mnk=(1, 2, 1)), ["first mode", "got 1x2x1"]),
        (replace(PINGPONG, cluster_shape_mnk=(3, 1, 1)), ["cluster must be 1, 2 or 4", "got 3"]),
        (replace(PINGPONG, tile_shape_mn=(128, 112)), ["at most 96", "alone", "got 112"]),
        (replace(COOPERATIVE, tile_shape_mn=(256, 160)), ["at most 144", "together", "got 160"]),
        (replace(COOPERATIVE, tile_shape_mn=(64, 64)), ["tile_n must be 128, 192 or 256 (got 64)"]),
        (replace(COOPERATIVE, tile_shape_mn=(128, 24)), ["tile_m must be a multiple of 16 (got 24)"]),
    ],
)
def test_what_has_no_kernel_is_told_why(schedule: ScheduleConfig, words: list[str]) -> None:
    why_not = schedule_kernel(schedule, BF16, 128)[1]
    assert why_not is not None
    for word in words:
        assert word in why_not


def test_types_have_a_word_too() -> None:
    narrow = parse_types("e4m3fn_u4b8_bf16_bf16")
    assert schedule_kernel(PINGPONG, narrow, -1)[1] is None
    for tokens in (128, 256):
        why_not = schedule_kernel(replace(COOPERATIVE, tile_shape_mn=(128, tokens)), narrow, 128)[1]
        assert "96 tokens" in str(why_not)


def test_names_are_those_of_cutlass_and_read_back() -> None:
    assert generate_sch_sig(PINGPONG) == (
        "128x64_2x1x1_KernelTmaWarpSpecializedPingpong_TmaWarpSpecialized_StreamKScheduler"
    )
    assert generate_terse_sch_sig(replace(COOPERATIVE, tile_scheduler=TileSchedulerType.Persistent)) == (
        "128x128_2x1x1_TmaMI__TmaCoop_PersistentScheduler"
    )
    for one in (*EVERY, *schedules().values(), replace(PINGPONG, tile_shape_mn=(64, 8))):
        assert parse_sch_sig(generate_sch_sig(one)) == one
        assert parse_sch_sig(generate_terse_sch_sig(one)) == one


@pytest.mark.parametrize(
    "name",
    [
        "",
        "128x128_2x1x1",
        "128x128_2x1_TmaMI__TmaCoop_streamK",
        "128x128_2x1x1_TmaMI_TmaCoop_streamK",
        "128x128_2x1x1_TmaMI__TmaCoop_streamk",
        "128x128_2x1x1_TmaMI__TmaCoop_streamK_",
        "128x128_2x1x1_TmaCoop_TmaMI__streamK",
    ],
)
def test_what_is_no_schedule_is_none(name: str) -> None:
    assert parse_sch_sig(name) is None


def test_rules_mean_documented_schedules_or_pingpong_under_stream_k() -> None:
    assert tiling_schedule(parse_tiling("128x128_2x1x1")) == COOPERATIVE
    assert tiling_schedule(parse_tiling("128x64_2x1x1_pingpong")) == PINGPONG
