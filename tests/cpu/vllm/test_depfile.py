"""A CMake and Ninja build reruns the generator exactly when it has to, with the recipe of `docs/vllm.md`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NO_WORK = "no work to do"

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja"
)


def recipe() -> str:
    """The CMake commands that the documentation gives."""
    text = (ROOT / "docs" / "vllm.md").read_text().split("## In a CMake build\n\n")[1]
    return "\n".join(line[4:] for line in text.split("\n\n")[0].splitlines())


def run(*words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def test_ninja_reruns_exactly_when_needed(tmp_path: Path) -> None:
    model = tmp_path / "config.json"
    shutil.copy(ROOT / "examples/models/llama-3.1-8b-gptq-int4/config.json", model)
    commands = recipe().replace("COMMAND billhook", f"COMMAND {sys.executable} -m billhook")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(recipe NONE)\n"
        "set(REQUEST --target vllm-0.33 --family marlin --arch 8.0 --models ${CMAKE_SOURCE_DIR}/config.json\n"
        "  --out ${CMAKE_BINARY_DIR}/marlin)\n"
        f"{commands}\n"
        "add_custom_target(sources ALL DEPENDS ${FILES})\n"
    )
    build = tmp_path / "build"
    run("cmake", "-S", tmp_path, "-B", build, "-G", "Ninja")
    selector = build / "marlin" / "kernel_selector.h"
    assert f"{selector.parent}: 2 new" in run("ninja", "-C", build)
    before = selector.stat().st_mtime_ns
    assert NO_WORK in run("ninja", "-C", build)
    model.write_text(model.read_text() + "\n")
    assert "2 unchanged" in run("ninja", "-C", build)
    assert selector.stat().st_mtime_ns == before
    assert NO_WORK in run("ninja", "-C", build)
    selector.unlink()
    assert "1 new, 1 unchanged" in run("ninja", "-C", build)
    assert NO_WORK in run("ninja", "-C", build)
