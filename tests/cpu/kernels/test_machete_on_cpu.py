"""The kernels of the Machete family as they are shipped, run on a model of the GPU."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cpu.kernels.case import Case, check, compile_kernels

from billhook.build.headers import CUDA_ROOT

CASES = [
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k128s4_dense", 19, 272, 400, grid=3),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4_dense", 70, 144, 208, grid=4),
    Case("bf16_u4b8_bf16_bf16_g128_m16n256k128s4_dense", 9, 272, 336, grid=1),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4c2_dense", 40, 272, 208, grid=2),
    Case("bf16_u4_bf16_bf16_g128_m32n192k128s3_dense", 40, 272, 208, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3_dense", 300, 144, 208, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m128n256k64s3c2_dense", 130, 528, 80, grid=4),
    Case("f16_u4_f16_f16_g32_m16n128k64s4_dense", 16, 144, 208, grid=2),
    Case("bf16_u8_bf16_bf16_g64_m32n128k128s3_dense", 33, 128, 176, grid=2),
    Case("f16_u8b128_f16_f16_g128_m48n128k64s4_dense", 50, 144, 144, grid=2),
    Case("f16_e4m3fn_f16_f16_gch_m32n128k64s4_dense", 20, 208, 144, grid=2),
    Case("bf16_e4m3fn_e8m0fnu_bf16_g32_m16n256k64s4_dense", 5, 256, 96, grid=1),
    Case("bf16_e2m1f_e8m0fnu_bf16_g32_m16n128k128s4_dense", 7, 208, 320, grid=2),
    Case("f16_e2m1f_e4m3fn_f16_g16_m16n128k64s4_dense", 16, 144, 96, grid=2),
    # Tiles that workers share: by twos, by threes and more, several to a worker, and clusters as workers.
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k128s4_dense", 3, 256, 1168, grid=4, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k128s4_dense", 16, 144, 1424, grid=7, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4_dense", 70, 272, 848, grid=4, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4c2_dense", 32, 272, 1360, grid=6, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m16n256k128s4_dense", 9, 272, 1296, grid=3, shared=True),
    Case("bf16_u8b128_bf16_bf16_g128_m256n128k64s2_dense", 300, 144, 208, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m160n128k64s3_dense", 300, 144, 208, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m176n128k64s3_dense", 170, 144, 208, grid=2),
    Case("bf16_u4_bf16_bf16_g64_m208n128k64s3_moe", 210, 144, 208, grid=3, experts=3),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m240n128k128s3c2_dense", 230, 272, 336, grid=2),
    Case("bf16_u4_bf16_bf16_g128_m224n128k64s3_dense", 230, 144, 208, grid=3),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m160n128k128s3_dense", 300, 144, 336, grid=2),
    Case("s8_u4b8_bf16_bf16_gch_m224n128k128s3_dense", 230, 144, 336, grid=3),
    # Parts that come through the stages: two of a tile, three, and of tiles that follow whole ones.
    Case("bf16_u4b8_bf16_bf16_g128_m128n128k64s3_dense", 120, 256, 3344, grid=4, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m96n128k64s4_dense", 90, 128, 2816, grid=3, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m192n128k64s3_dense", 190, 272, 3344, grid=2, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m128n128k64s4c2_dense", 120, 272, 3344, grid=8, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m240n128k64s3c2_dense", 190, 272, 3344, grid=8, shared=True),
    Case("s8_u4b8_bf16_bf16_gch_m128n128k128s3_grouped", 90, 256, 3344, grid=12, experts=3, shared=True),
    # Halves of tiles: below whole ones, and of tiles that fill no wave.
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3_dense", 300, 144, 784, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3_dense", 256, 272, 784, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s4_dense", 270, 272, 784, grid=3),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3c2_dense", 300, 272, 784, grid=4),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3_grouped", 200, 272, 784, grid=4, experts=3),
    Case("bf16_u4b8_bf16_bf16_g128_m256n128k64s3c2_grouped", 200, 272, 784, grid=4, experts=3),
    Case("s8_u4b8_bf16_bf16_gch_m256n128k128s3_dense", 300, 144, 1680, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m256n128k128s4_dense", 256, 400, 1680, grid=3),
    # MoE: rows looked up, and rows grouped before; blocks that are skipped for longer than there are stages.
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s2_grouped", 60, 144, 848, grid=3, experts=3),
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k64s4_moe", 30, 144, 208, grid=5, experts=4),
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k64s4_moe", 6, 128, 1424, grid=12, experts=3, shared=True),
    Case("bf16_e2m1f_e8m0fnu_bf16_g32_m32n128k64s4_moe", 40, 144, 96, grid=4, experts=3),
    Case("bf16_u4_bf16_bf16_g64_m48n192k128s3_moe", 40, 272, 208, grid=3, experts=3),
    Case("bf16_u4b8_bf16_bf16_g128_m144n256k64s3_moe", 170, 272, 208, grid=3, experts=3),
    Case("f16_u4_f16_f16_g128_m144n256k64s2_grouped", 170, 272, 80, grid=3, experts=3),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4_grouped", 60, 144, 208, grid=3, experts=3),
    Case("f16_u4b8_f16_f16_g128_m32n128k64s4c2_grouped", 40, 272, 144, grid=4, experts=3),
    # Activations of 8 bits.
    Case("e4m3fn_u4b8_bf16_bf16_gch_m16n128k128s4_dense", 19, 272, 400, grid=3),
    Case("e4m3fn_u4b8_f16_f16_gch_m32n256k128s4_dense", 40, 272, 208, grid=2),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m32n128k256s3c2_dense", 40, 272, 400, grid=2),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m128n256k128s4_dense", 70, 272, 208, grid=2),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m16n128k128s4_dense", 16, 144, 1168, grid=5, shared=True),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m16n128k128s4_grouped", 30, 144, 208, grid=4, experts=4),
    Case("e4m3fn_u4b8_f16_f16_gch_m32n256k128s4_grouped", 40, 272, 144, grid=3, experts=3),
    Case("s8_u4b8_f16_f16_gch_m16n128k128s4_dense", 19, 272, 400, grid=3),
    Case("s8_u4b8_bf16_bf16_gch_m32n256k128s4_dense", 40, 272, 208, grid=2),
    Case("s8_u4b8_bf16_bf16_gch_m64n128k256s3c2_dense", 70, 272, 400, grid=4),
    Case("s8_u4b8_bf16_bf16_gch_m128n256k128s4_dense", 70, 272, 208, grid=2),
    Case("s8_u4b8_f16_f16_gch_m16n128k128s4_dense", 16, 144, 1168, grid=5, shared=True),
    Case("s8_u4b8_f16_f16_gch_m16n128k128s4_grouped", 30, 144, 208, grid=4, experts=4),
    # Of 8 bits, under group scales.
    Case("e4m3fn_u4b8_bf16_bf16_g128_m32n128k256s3_dense", 40, 272, 400, grid=2),
    Case("e4m3fn_u4b8_f16_f16_g128_m16n128k128s4_dense", 16, 144, 1168, grid=5, shared=True),
    Case("e4m3fn_u4b8_bf16_bf16_g128_m96n128k256s2c2_dense", 130, 272, 336, grid=2),
    Case("s8_u4b8_f16_f16_g128_m16n128k256s3_dense", 19, 144, 592, grid=1),
    Case("s8_u4b8_bf16_bf16_g128_m32n128k256s3_grouped", 40, 272, 400, grid=3, experts=3),
    Case("s8_u4b8_bf16_bf16_gch_m32n128k128s4c2_grouped", 40, 272, 144, grid=4, experts=3),
    Case("s8_u4b8_f16_f16_gch_m16n128k128s4_grouped", 6, 128, 1424, grid=12, experts=3, shared=True),
    # Of 8 bits, beside weights of 8 bits; what lies past the end of k is NaN in e4m3.
    Case("e4m3fn_e4m3fn_bf16_bf16_gch_m16n128k128s4_dense", 19, 272, 144, grid=3),
    Case("e4m3fn_e4m3fn_bf16_bf16_gch_m256n128k128s3_dense", 300, 144, 1680, grid=2),
    Case("e4m3fn_e4m3fn_f16_f16_gch_m32n256k128s3c2_dense", 40, 528, 400, grid=2),
    Case("e4m3fn_e4m3fn_bf16_bf16_gch_m16n128k128s4_dense", 16, 144, 1168, grid=5, shared=True),
    Case("e4m3fn_e4m3fn_bf16_bf16_gch_m32n192k128s3p_dense", 40, 272, 208, grid=1),
    Case("e4m3fn_e4m3fn_f16_f16_g128_m32n128k256s3_dense", 40, 272, 336, grid=2),
    Case("e4m3fn_e4m3fn_bf16_bf16_g128_m96n128k128s3c2_grouped", 130, 272, 144, grid=4, experts=3),
    Case("s8_u8b128_bf16_bf16_gch_m160n128k128s3_dense", 170, 144, 336, grid=3),
    Case("s8_u8b128_f16_f16_gch_m32n192k128s4_dense", 40, 272, 208, grid=2),
    Case("s8_u8b128_f16_f16_gch_m16n128k256s3_grouped", 30, 144, 400, grid=3, experts=4),
    Case("s8_u8b128_bf16_bf16_g128_m64n128k128s4_dense", 70, 272, 400, grid=2),
    # Of 8 bits, with group scales that are part of the weights.
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m16n128k128s4_dense", 19, 272, 400, grid=3),
    Case("e4m3fn_u4b8_e4m3fn_f16_g128_m32n128k256s3_dense", 40, 272, 336, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m32n128k256s3c2_dense", 40, 272, 400, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m256n128k128s4_dense", 300, 144, 208, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m128n256k128s4_dense", 70, 272, 208, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m32n192k128s3p_dense", 40, 400, 208, grid=1),
    Case("e4m3fn_u4b8_e4m3fn_f16_g128_m16n128k128s4_dense", 16, 144, 1168, grid=5, shared=True),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m32n256k128s3_grouped", 40, 272, 400, grid=3, experts=3),
    Case("e4m3fn_u4b8_e4m3fn_f16_g128_m16n128k256s3_grouped", 6, 128, 1424, grid=12, experts=3, shared=True),
]

# Warpgroups that take tiles in turns: many, few, an odd number, one; of 1 to 4 strips; whole and shared ones.
PINGPONG = [
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4p_dense", 70, 272, 208, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4p_dense", 1, 128, 848, grid=1),
    Case("bf16_u4b8_bf16_bf16_g128_m16n256k128s3p_dense", 40, 272, 208, grid=1),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k128s4c2p_dense", 100, 272, 208, grid=4),
    Case("bf16_u4b8_bf16_bf16_g128_m96n128k128s2p_dense", 150, 144, 272, grid=1),
    Case("f16_u8b128_f16_f16_g32_m16n192k64s5p_dense", 50, 400, 80, grid=1),
    Case("bf16_e2m1f_e8m0fnu_bf16_g32_m32n128k128s3p_dense", 33, 272, 320, grid=1),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s3p_dense", 70, 272, 848, grid=4, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k128s4c2p_dense", 32, 272, 1296, grid=6, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k128s4p_dense", 16, 144, 1424, grid=7, shared=True),
    Case("bf16_u4_bf16_bf16_g64_m48n192k128s3p_moe", 40, 272, 208, grid=3, experts=3),
    Case("bf16_e2m1f_e8m0fnu_bf16_g32_m16n256k64s4p_moe", 30, 272, 96, grid=2, experts=4),
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k64s4p_moe", 6, 128, 1424, grid=12, experts=3, shared=True),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4p_grouped", 60, 144, 208, grid=3, experts=3),
    Case("f16_u4b8_f16_f16_g128_m32n128k64s4c2p_grouped", 40, 272, 144, grid=2, experts=3),
    Case("bf16_u4b8_bf16_bf16_g128_m32n128k64s4p_grouped", 6, 128, 1424, grid=7, experts=3, shared=True),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m32n128k128s4p_dense", 70, 272, 400, grid=2),
    Case("e4m3fn_u4b8_f16_f16_gch_m32n256k128s3p_dense", 40, 528, 208, grid=1),
    Case("e4m3fn_u4b8_bf16_bf16_gch_m32n128k128s4p_dense", 32, 144, 1168, grid=5, shared=True),
    Case("s8_u4b8_bf16_bf16_gch_m64n128k256s3c2p_dense", 200, 272, 400, grid=2),
    Case("e4m3fn_u4b8_f16_f16_gch_m16n128k128s4p_grouped", 30, 144, 208, grid=2, experts=4),
    Case("s8_u4b8_bf16_bf16_gch_m32n192k128s3p_grouped", 40, 272, 144, grid=2, experts=3),
]

# Stages that are filled again: by one CTA, by a cluster, and with parts of other workers.
FOR_RACECHECK = [
    Case("bf16_u4b8_bf16_bf16_g128_m16n128k64s4_dense", 19, 144, 400, grid=2),
    Case("e4m3fn_u4b8_e4m3fn_bf16_g128_m32n128k128s3c2_dense", 40, 272, 592, grid=2),
    Case("bf16_u4b8_bf16_bf16_g128_m96n128k64s4_dense", 90, 128, 2816, grid=3, shared=True),
]


def compile_cases(folder: Path, cases: list[Case], *, macros: Sequence[str] = ()) -> Any:
    """Compile the kernels of cases for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    return compile_kernels(compiler, {case.config for case in cases}, CUDA_ROOT, folder, macros=macros)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compile_cases(tmp_path_factory.mktemp("kernels"), [*CASES, *PINGPONG])


@pytest.fixture(scope="module")
def library_for_racecheck(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compile_cases(
        tmp_path_factory.mktemp("kernels"), FOR_RACECHECK, macros=["BILLHOOK_EVERY_LANE_ARRIVES"]
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_is_right_whatever_the_order_of_threads_and_copies(library: Any, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", PINGPONG, ids=str)
def test_turns_are_taken_whatever_the_order_of_threads_and_copies(library: Any, case: Case) -> None:
    check(library, case, orders=4)


@pytest.mark.parametrize("case", FOR_RACECHECK, ids=str)
def test_every_lane_may_arrive(library_for_racecheck: Any, case: Case) -> None:
    check(library_for_racecheck, case)


@pytest.mark.parametrize(
    ("case", "header", "right", "wrong"),
    [
        # A stage is given back too early.
        (
            Case("s8_u4b8_f16_f16_gch_m16n128k128s2_dense", 16, 144, 1168, grid=5, shared=True),
            "mainloop/wgmma_narrow.cuh",
            "wgmma_wait<1>()",
            "wgmma_wait<2>()",
        ),
        # A part is taken before all of it is there.
        (
            Case("s8_u4b8_f16_f16_gch_m32n128k256s2_dense", 32, 144, 1296, grid=4, shared=True),
            "schedule/partial.cuh",
            " || u.y == kEmpty || u.z == kEmpty || u.w == kEmpty",
            "",
        ),
        # A stage with another worker's part is given back while a lane reads it.
        (
            Case("bf16_u4b8_bf16_bf16_g128_m96n128k64s4_dense", 90, 128, 2816, grid=3, shared=True),
            "epilogue/fragments.cuh",
            "__syncwarp();  // all lanes have read",
            "",
        ),
        # A warpgroup begins a tile while several phases of its first stage are to come.
        (
            Case("s8_u4b8_f16_f16_gch_m16n128k128s2p_dense", 16, 272, 1040, grid=1),
            "kernel/machete.cuh",
            "i == at.count - 1 &&",
            "i == 0 &&",
        ),
        # What the stage held before, NaN, is multiplied by activations of zero.
        (
            Case("e4m3fn_e4m3fn_bf16_bf16_gch_m16n128k128s4_dense", 19, 272, 144, grid=3),
            "mainloop/wgmma_narrow.cuh",
            "has_nan<Weight> && !exists",
            "false",
        ),
    ],
    ids=("stage", "part", "lane", "turn", "nan"),
)
def test_a_fault_is_seen(tmp_path: Path, case: Case, header: str, right: str, wrong: str) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    headers = tmp_path / "headers"
    shutil.copytree(CUDA_ROOT, headers)
    text = (headers / "billhook" / header).read_text()
    assert right in text
    (headers / "billhook" / header).write_text(text.replace(right, wrong))
    library = compile_kernels(compiler, [case.config], headers, tmp_path)
    with pytest.raises(AssertionError):
        check(library, case, orders=20)
