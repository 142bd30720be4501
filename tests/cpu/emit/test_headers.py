"""The CUDA headers' layering: a folder includes itself and folders before it, never later ones."""

from __future__ import annotations

import re
from pathlib import Path

import billhook

ROOT = Path(billhook.__file__).parent / "cuda/billhook"
LAYERS = ("numeric", "ptx", "mma", "problem", "schedule", "mainloop", "epilogue", "kernel")


def test_headers_include_earlier_layers_only() -> None:
    headers = sorted(ROOT.rglob("*.cuh"))
    assert {header.parent.name for header in headers} == set(LAYERS)
    for header in headers:
        for folder in re.findall(r'#include "billhook/(\w+)/', header.read_text()):
            mine = LAYERS.index(header.parent.name)
            assert LAYERS.index(folder) <= mine, f"{header.name} includes {folder}/"
