"""The packing kernels as emitted, compiled for the CPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billhook import arch
from billhook.build.headers import included_headers
from billhook.dispatch import packing
from billhook.emit import emit_support

_ENTRY = re.compile(
    r"void __launch_bounds__\(pack::kThreads\) (\w+)\(const __grid_constant__ pack::(\w+) p\)"
)


def build(folder: Path) -> Any:
    """Compile the kernels into a folder and load them; skip the test where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("running kernels on the CPU needs g++")
    source = emit_support("pack", arch.parse("8.0")).text
    lines = ['#include "cuda_on_cpu.hpp"', source]
    for name, parameters in _ENTRY.findall(source):
        call = f"[&] {{ {name}(*static_cast<const pack::{parameters}*>(p)); }}"
        lines.append(f'extern "C" const char* launch_{name}(int ctas, const void* p) {{')
        lines.append(f"  return cpu::launch(ctas, {packing.PACK_THREADS}, {call});\n}}")
    lines.append(f"static_assert(pack::kThreads == {packing.PACK_THREADS});")
    lines.append(f"static_assert(pack::kStrips == {packing.TILE_STRIPS});")
    lines.append(f"static_assert(billhook::kStrip == {packing.SCALE_GROUPS});")
    lines.append(f"static_assert(sizeof(pack::Codes) == {packing._CODES.size});")
    lines.append(f"static_assert(sizeof(pack::Scales) == {packing._SCALES.size});")
    for header, text in included_headers(source).items():
        (folder / header).parent.mkdir(parents=True, exist_ok=True)
        (folder / header).write_text(text)
    (folder / "kernels.cpp").write_text("\n".join(lines))
    include = ["-I", str(folder), "-I", str(Path(__file__).parent)]
    command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *include, "kernels.cpp", "-o", "k.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "k.so"))


def launcher(kernels: Any) -> Callable[[str, int, int, int], None]:
    """Return what stands in for `launch_kernel`: it runs a kernel, which is named, on the CPU."""

    def launch(kernel: str, ctas: int, stream: int, pointers: int) -> None:
        function = getattr(kernels, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        wrong = function(ctas, ctypes.c_void_p(ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))[0]))
        assert wrong is None, wrong.decode()

    return launch
