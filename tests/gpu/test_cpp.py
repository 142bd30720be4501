"""The emitted C++ library on the GPU: its own test program must find every kernel within its bound."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from billhook.build.compile import default_jobs  # noqa: E402
from billhook.build.headers import included_headers  # noqa: E402
from billhook.catalog import load  # noqa: E402
from billhook.config import Problem  # noqa: E402
from billhook.driver import native_arch  # noqa: E402
from billhook.emit.cpp import emit_cpp, kernel_sources  # noqa: E402
from billhook.plan import Plan, plan_problems  # noqa: E402
from billhook.select import candidates  # noqa: E402
from billhook.vllm.machete.native import find_catalog  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs nvcc (CUDA 12.5 or later) on PATH"
)


def run(plan: Plan, folder: Path) -> None:
    headers: dict[str, str] = {}
    for source in kernel_sources(plan):
        headers |= included_headers(source.text)
    for file in emit_cpp(plan, headers):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    made = subprocess.run(
        ["make", f"-j{default_jobs()}", "-C", str(folder)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    for seed in ("0", "1"):
        program = str(folder / "build/billhook_test")
        ran = subprocess.run(
            [program, seed], capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
        assert "all within bounds" in ran.stdout


def test_every_format_dense_and_moe(tmp_path: Path) -> None:
    arch = native_arch(torch.cuda.get_device_capability())
    problems = [
        Problem(1, n, k, types, held.group_sizes[-1], experts, top_k)
        for held in load().formats
        for types in held.types()[-1:]
        for n, k, experts, top_k in ((272, 352, 0, 0), (256, 192, 5, 2))
    ]
    served = [one for one in problems if any(why is None for _, why in candidates(one, arch))]
    run(plan_problems(served, [arch], 80), tmp_path)


def test_eight_bit_activations_dense_and_moe(tmp_path: Path) -> None:
    arch = native_arch(torch.cuda.get_device_capability())
    problems = []
    for held, (n, k, group, experts, top_k) in product(
        load().formats, ((272, 352, -1, 0, 0), (256, 192, 0, 5, 2))
    ):
        for types in held.types():
            one = Problem(1, n, k, types, held.group_sizes[group], experts, top_k)
            if types.a.bits == 8 and any(why is None for _, why in candidates(one, arch)):
                problems.append(one)
    if not problems:
        pytest.skip(f"no kernel takes 8-bit activations on {arch}")
    run(plan_problems(problems, [arch], 2048), tmp_path)


def test_rows_of_experts_grouped(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of 9.0, where rows are grouped")
    types = load().formats[0].types()[-1]
    plan = plan_problems([Problem(1, 528, 1040, types, 128, 4, 2)], [native_arch((9, 0))], 2048)
    assert any(kernel.config.grouped for kernel in plan.kernels)
    run(plan, tmp_path)


def test_every_range_of_large_layers(tmp_path: Path) -> None:
    types = load().formats[0].types()[-1]
    problems = [
        Problem(1, n, k, types, 128, experts, top_k)
        for n, k, experts, top_k in (
            (4096, 4096, 0, 0),
            (28672, 4096, 0, 0),
            (1536, 2048, 128, 8),
            (2048, 768, 128, 1),
        )
    ]
    run(plan_problems(problems, [native_arch(torch.cuda.get_device_capability())]), tmp_path)


def test_the_documented_heuristic(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of 9.0, where wgmma is")
    types = load().formats[0].types()[0]
    problems = [Problem(1, n, k, types, 128) for n, k in ((4096, 4096), (8192, 8192), (28672, 8192))]
    arch = native_arch((9, 0))
    run(plan_problems(problems, [arch], 1024, find_catalog("machete-0.20")), tmp_path)
