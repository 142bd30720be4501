"""The kernel that copies activations into the order of their experts, run on a model of the GPU."""

from __future__ import annotations

import ctypes
import shutil
from typing import Any

import numpy as np
import pytest
from cpu.sm90 import model

from billhook.arch import parse
from billhook.build.compile import support_unit
from billhook.build.headers import CUDA_ROOT
from billhook.dispatch.launch import GROUP_LAYOUT, GROUP_THREADS
from billhook.dispatch.routing import route

CHUNK = 16  # bytes
EMPTY = 0xEE


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the model of the GPU needs g++")
    text = support_unit("group", parse("9.0a")).source.text
    source = f'#include "billhook/kernel/group.cuh"\nnamespace grouping {{\n{text}}}\n'
    source += model.entry("group_rows", "grouping")
    return model.compile_library(compiler, source, CUDA_ROOT, tmp_path_factory.mktemp("group"))


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("chunks", [1, 31, 128, 129, 300])
@pytest.mark.parametrize("routed", [(1, 2, 16), (23, 2, 16), (40, 1, 8)], ids=str)
def test_each_row_comes_to_its_place_and_nothing_else_is_written(
    library: Any, routed: tuple[int, int, int], chunks: int, grid: int
) -> None:
    tokens, top_k, block_m = routed
    rng = np.random.default_rng(tokens * chunks)
    stride = chunks + 3
    a = rng.integers(0, 256, (tokens, stride * CHUNK), dtype=np.uint8)
    ids = rng.integers(-1, 4, (tokens, top_k))
    order, _, padded = route(ids, 4, block_m)
    order = np.concatenate([order, [0] * block_m]).astype(np.int32)  # what lies behind is not looked at
    length = np.array([padded], np.int32)
    grouped = np.full((len(order), chunks * CHUNK), EMPTY, np.uint8)
    pointers = (one.ctypes.data for one in (a, grouped, order, length))
    values = ctypes.create_string_buffer(GROUP_LAYOUT.pack(*pointers, ids.size, chunks, stride, top_k))
    wrong = model.launch(
        library,
        "group_rows",
        (ctypes.c_void_p * 1)(ctypes.addressof(values)),
        [],
        grid=(grid, 1),
        cluster=(1, 1),
        threads=GROUP_THREADS,
        shared_bytes=0,
        seed=chunks,
    )
    assert wrong == ""
    want = np.full_like(grouped, EMPTY)
    there = np.flatnonzero(order[:padded] < ids.size)
    want[there] = a[order[there] // top_k, : chunks * CHUNK]
    assert np.array_equal(grouped, want)
