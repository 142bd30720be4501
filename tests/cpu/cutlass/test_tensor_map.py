"""Tensor maps are asked of the driver as CuTe asks for them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cpu.cutlass.referee import include_folders

from billhook.dispatch import tensor_map

_ELEMENTS = ("f16", "bf16", "e4m3fn", "s8")  # in the order of tensor_maps.cpp
_PROMOTION = 12  # bytes that a miss in L2 fetches, 128 or 256: a choice, no fact


def asked_by_cute(folder: Path) -> list[list[int]]:
    """Return the numbers that CuTe hands cuTensorMapEncodeTiled, one list for each element type."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("CuTe's host code needs g++")
    folders = [f"-I{one}" for one in include_folders()]
    source = Path(__file__).with_name("tensor_maps.cpp")
    command = [compiler, "-std=c++17", "-O0", "-w", *folders, str(source), "-o", str(folder / "tensor_maps")]
    subprocess.run(command, check=True, timeout=300)
    said = subprocess.run([folder / "tensor_maps"], check=True, timeout=10, stdout=subprocess.PIPE, text=True)
    return [[int(one) for one in line.split()] for line in said.stdout.splitlines()]


def asked_by_us(element: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the same numbers of our call."""
    asked: list[int] = []

    def encode(_: Any, *arguments: Any) -> int:
        for one in arguments:
            value = getattr(one, "value", one)
            asked.extend([value] if isinstance(value, int) else value)
        return 0

    monkeypatch.setattr(tensor_map, "_encoder", lambda: encode)
    tensor_map.tensor_maps(tensor_map.Matrix(element, 0x7000, rows=300, features=4096, stride=4112), 64)
    return asked[: len(asked) // 2]  # of the first of two


def test_tensor_maps_are_asked_for_as_cute_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cute = asked_by_cute(tmp_path)
    ours = [asked_by_us(element, monkeypatch) for element in _ELEMENTS]
    for one in (*cute, *ours):
        del one[_PROMOTION]
    assert ours == cute
