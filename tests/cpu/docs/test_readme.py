"""The Python of the README runs as it is printed, but on a CPU and on small layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

README = Path(__file__).parents[3] / "README.md"
SMALL = {'"cuda"': '"cpu"', "4096": "256", "14336": "128", "1024": "64"}
LOADED = "model"  # what is made of it needs a checkpoint


def test_the_python_of_the_readme_runs() -> None:
    (section,) = re.findall(r"## From Python\n(.*?)\n## ", README.read_text(), re.S)
    lines = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    code = "\n".join(line for line in lines if LOADED not in line)
    for printed, small in SMALL.items():
        code = code.replace(printed, small)
    shapes: list[tuple[int, ...]] = []

    class Names(dict[str, Any]):
        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, value)
            if name == "d":
                shapes.append(tuple(value.shape))

    exec(compile(code, str(README), "exec"), {}, Names())
    assert shapes == [(16, 128), (32, 64), (16, 64), *[(16, 128)] * 4]
