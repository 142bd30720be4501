"""The ladder of docs/kernels: compiled for the GPU, and run on a model of it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from cpu.sm90 import model as sm90

from billhook.build.resources import read_resources, read_warnings
from billhook.build.toolchain import find_nvrtc
from billhook.errors import ToolchainError

FOLDER = Path(__file__).parents[3] / "docs" / "kernels"


def load_ladder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ladder", FOLDER / "ladder.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ladder = load_ladder()
by_step = pytest.mark.parametrize("step", ladder.STEPS, ids=lambda step: step.symbol)


@by_step
def test_a_step_compiles_without_spills_and_serialised_wgmma(step: Any) -> None:
    try:
        find_nvrtc()
    except ToolchainError as error:
        pytest.skip(str(error))
    log = ladder.compile_step(step).log
    assert read_warnings(log) == []
    resources = read_resources(log)[step.symbol]
    assert resources.spills == resources.stack == 0
    assert resources.registers * step.threads <= 65536


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All steps, compiled for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    # The headers that steps share first, so that each step's constants alone are in its namespace.
    lines = ['#include "int4.cuh"']
    for step in ladder.STEPS:
        lines += [f'namespace of_{step.symbol} {{\n#include "{step.source.name}"\n}}']
        lines += [sm90.entry(step.symbol, f"of_{step.symbol}")]
    return sm90.compile_library(compiler, "\n".join(lines), FOLDER, tmp_path_factory.mktemp("model"))


def tensor_map(address: int, rows: int, columns: int, box_rows: int) -> sm90.TensorMap:
    return sm90.TensorMap(address, columns, rows, columns * 2, 2, box_rows)


def run_on(model: Any, step: Any, problem: Any, seed: int, sms: int = 12) -> npt.NDArray[Any]:
    grid = step.grid(problem.m, problem.n, problem.k, sms)
    weights = problem.weights(step.weights)
    d = np.full((problem.m, problem.n), np.nan, ml_dtypes.bfloat16)
    partials = np.full(max(16, grid[0] * grid[1] * step.slot_bytes), 0xFF, np.uint8)
    values = ladder.arguments(
        step,
        problem,
        x=problem.x.ctypes.data,
        weights=[array.ctypes.data for array in weights],
        d=d.ctypes.data,
        partials=partials.ctypes.data,
        tensor_map=tensor_map,
    )
    error = sm90.launch(
        model,
        step.symbol,
        ladder.pointers(values),
        [problem.x, *weights],
        grid=grid,
        cluster=step.cluster_shape,
        threads=step.threads,
        shared_bytes=step.shared_bytes,
        seed=seed,
    )
    assert error == ""
    assert (partials == 0xFF).all()  # ready for the next launch
    return d


@by_step
def test_a_step_is_right_whatever_the_order_of_threads_and_copies(model: Any, step: Any) -> None:
    # Ten stages: more than there are slots. 150 tokens: a tile and part of one. Six shares of 20 stages.
    problem = ladder.Problem(m=150, n=512, k=640)
    first, second = (run_on(model, step, problem, seed) for seed in (1, 2))
    assert problem.wrong(first) == ""
    assert first.tobytes() == second.tobytes()


def test_a_share_of_stream_k_may_be_longer_than_a_tile_and_the_ring(model: Any) -> None:
    problem = ladder.Problem(m=300, n=512, k=640)  # 30 stages in two shares, 8 slots
    assert problem.wrong(run_on(model, ladder.STEPS[-1], problem, seed=3, sms=4)) == ""


def test_a_wrong_product_is_told() -> None:
    problem = ladder.Problem(m=3, n=512, k=8192)
    right = problem.expected.astype(ml_dtypes.bfloat16)
    assert problem.wrong(right) == ""
    left_out = np.outer(problem.x[:, 0], problem.w[:, 0]).astype(np.float32)  # one input feature
    assert "relative error" in problem.wrong((problem.expected - left_out).astype(ml_dtypes.bfloat16))
    right[2, 7] = np.nan
    assert "first [2, 7]" in problem.wrong(right)


def test_what_the_readme_links_to_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > len(ladder.STEPS)
    assert [target for target in targets if not (FOLDER / target).exists()] == []
