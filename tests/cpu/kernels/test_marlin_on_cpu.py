"""The kernels of the Marlin family as they are shipped, run on a model of the GPU."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from cpu.kernels.case import Case, check, compile_kernels

from billhook.build.headers import CUDA_ROOT


def marlin(kernel: str, m: int, n: int, k: int, grid: int, **more: Any) -> Case:
    return Case(kernel, m, n, k, grid, family="marlin", **more)


def turing(kernel: str, m: int, n: int, k: int, grid: int, **more: Any) -> Case:
    return marlin(kernel, m, n, k, grid, target="sm75", **more)


CASES = [
    marlin("bf16_u4b8_bf16_bf16_g128_m16n64k128s3_dense", 19, 144, 400, 2),
    marlin("f16_u4_f16_f16_g32_m8n128k64s4_moe", 9, 144, 208, 3, experts=3),
    marlin("bf16_u4b8_bf16_bf16_g128_m8n64k128s3_dense", 7, 80, 1040, 3, shared=True),
    # Activations of 8 bits: each format with each type, each size of groups, odd columns and two halves.
    marlin("s8_u4b8_f16_f16_gch_m16n64k128s3_dense", 19, 144, 400, 2),
    marlin("s8_u4b8_bf16_bf16_g128_m24n64k128s2_dense", 30, 80, 400, 2),
    marlin("s8_u4b8_f16_f16_g64_m8n128k64s4_dense", 7, 144, 208, 2),
    marlin("s8_u4b8_bf16_bf16_g32_m64n64k128s3_dense", 70, 80, 208, 2),
    marlin("s8_u4_f16_f16_gch_m16n64k128s3_dense", 19, 80, 144, 1),
    marlin("s8_u4_bf16_bf16_g32_m8n128k64s4_dense", 5, 144, 176, 2),
    marlin("s8_u8b128_bf16_bf16_gch_m8n64k128s3_dense", 5, 80, 272, 2),
    marlin("s8_u8b128_f16_f16_g128_m16n64k128s3_dense", 16, 80, 272, 1),
    marlin("e4m3fn_u4b8_bf16_bf16_gch_m40n64k128s2_dense", 40, 80, 336, 2),
    marlin("e4m3fn_u4b8_f16_f16_g32_m16n64k128s3_dense", 19, 80, 208, 2),
    marlin("e4m3fn_u4_f16_f16_g64_m16n64k128s3_dense", 9, 144, 208, 2),
    marlin("e4m3fn_e4m3fn_bf16_bf16_gch_m8n64k128s3_dense", 7, 80, 336, 2),
    marlin("e4m3fn_e4m3fn_f16_f16_g128_m16n64k128s3_dense", 10, 80, 208, 2),
    marlin("e4m3fn_e2m1f_e8m0fnu_bf16_g32_m8n128k64s4_dense", 7, 144, 224, 2),
    # Tiles that CTAs share, and experts.
    marlin("s8_u4b8_f16_f16_gch_m8n64k128s3_dense", 7, 80, 1040, 3, shared=True),
    marlin("s8_u4b8_f16_f16_g128_m16n64k128s3_dense", 16, 144, 1040, 7, shared=True),
    marlin("s8_u4b8_f16_f16_gch_m8n64k128s3_moe", 12, 80, 208, 4, experts=4),
    marlin("s8_u4b8_bf16_bf16_g64_m16n64k128s2_moe", 6, 80, 1040, 9, experts=3, shared=True),
    marlin("e4m3fn_u4_bf16_bf16_g128_m8n128k128s3_moe", 12, 144, 208, 4, experts=4),
    # SM75: copies through registers, and smaller instructions.
    turing("f16_u4b8_f16_f16_g128_m16n64k128s2_dense", 19, 144, 400, 2),
    turing("f16_u4_f16_f16_g32_m24n128k64s2_moe", 30, 144, 208, 4, experts=4),
    turing("f16_u8b128_f16_f16_gch_m8n128k128s2_dense", 5, 208, 1040, 5, shared=True),
    turing("f16_e2m1f_e4m3fn_f16_g16_m16n64k128s2_dense", 16, 144, 208, 2),
    turing("s8_u4b8_f16_f16_gch_m16n128k128s2_dense", 19, 144, 400, 2),
    turing("s8_u4_f16_f16_g64_m8n64k128s2_moe", 12, 144, 336, 5, experts=3),
    turing("s8_u8b128_f16_f16_g32_m16n64k128s2_dense", 16, 80, 1040, 3, shared=True),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All kernels by target, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    return {
        target: compile_kernels(
            compiler,
            {case.config for case in CASES if case.target == target},
            CUDA_ROOT,
            tmp_path_factory.mktemp(target),
        )
        for target in {case.target for case in CASES}
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_is_right_whatever_the_order_of_threads_and_copies(
    libraries: dict[str, Any], case: Case
) -> None:
    check(libraries[case.target], case)
