"""Activations of all kinds, and the quantizing kernels as emitted, run on the CPU by the model of SM90."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cpu.sm90 import model

from billhook import arch
from billhook.build.headers import included_headers
from billhook.dispatch import quantizing
from billhook.dtypes import BF16, E4M3FN, F16, F32, S8, DType
from billhook.emit import emit_support
from billhook.formats.minifloat import decode

TYPES = {F16: np.float16, BF16: ml_dtypes.bfloat16, F32: np.float32}
_NUMBERS = decode(np.arange(0x7F, dtype=np.uint8), E4M3FN)  # from 0 up
TIES = {E4M3FN: (_NUMBERS[1:] + _NUMBERS[:-1]) / 2, S8: np.arange(128) + 0.5}

_ENTRY = re.compile(r"void __launch_bounds__\(\S+ \S+\) (quantize_\w+)\(")
_SHARED = "__shared__ u32 maxima[2][kWarps];"  # the model has dynamic shared memory alone
_DYNAMIC = "auto* const maxima = reinterpret_cast<u32 (*)[kWarps]>(cpu::dynamic_shared<16>());"
_SHARED_BYTES = 2 * 8 * 4


def build(folder: Path, target: str) -> Any:
    """Compile the kernels for a target into a folder and load them; skip the test without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("running kernels on the CPU needs g++")
    source = emit_support("quantize", arch.parse(target)).text
    for header, text in included_headers(source).items():
        (folder / header).parent.mkdir(parents=True, exist_ok=True)
        (folder / header).write_text(text.replace(_SHARED, _DYNAMIC))
    lines = [Path(__file__).with_suffix(".hpp").read_text(), source]
    lines += [model.entry(name, "") for name in _ENTRY.findall(source)]
    lines.append(f"static_assert(quantize::kThreads == {quantizing.QUANTIZE_THREADS});")
    lines.append(f"static_assert(quantize::kWarps * 8 == {_SHARED_BYTES});")
    lines.append(f"static_assert(sizeof(quantize::Params) == {quantizing.LAYOUT.size});")
    return model.compile_library(compiler, "\n".join(lines), folder, folder, arch.parse(target))


def launcher(library: Any) -> Callable[[Any, int, int, int], None]:
    """Return what stands in for `launch_kernel`: it runs a kernel of the library on the CPU."""

    def launch(kernel: Any, ctas: int, stream: int, pointers: int) -> None:
        wrong = model.launch(
            library,
            kernel.name,
            (ctypes.c_void_p * 1)(ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))[0]),
            [],
            grid=(ctas, 1),
            cluster=(1, 1),
            threads=quantizing.QUANTIZE_THREADS,
            shared_bytes=_SHARED_BYTES,
            seed=0,
        )
        assert wrong == "", wrong

    return launch


def draw(rows: int, k: int, element: DType, seed: int = 0) -> np.ndarray:
    """Return rows of all kinds: plain, of one magnitude, tiny, subnormal, zero, huge, with few bits."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)).astype(np.float64)
    limits = ml_dtypes.finfo(TYPES[element])
    tiny, huge = float(limits.smallest_subnormal), float(limits.max)
    for row in range(rows):
        kind = row % 8
        if kind == 1:
            x[row] = 0
            x[row, ::2] = -0.0
        elif kind == 2:
            x[row] = np.round(x[row] * 300) * tiny
        elif kind == 3:
            x[row] = np.clip(x[row] / 4, -1, 1) * huge
        elif kind == 4:
            x[row] = np.round(x[row] * 8) / 16
            x[row, 0] = 7  # a scale that is a power of two (e4m3): ties
        elif kind == 5:
            x[row] *= float(limits.smallest_normal) * 8
        elif kind == 6:
            x[row] = np.exp2(rng.uniform(-20, 3, k)) * rng.choice([-1, 1], k)
    return x.astype(TYPES[element])
