"""Kernels for SM90 as functions of a library that runs on the CPU: `sm90.hpp` models the GPU."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cpu.sm90.ptx_to_cpp import translate

from billhook.arch import Arch

_SM90A = Arch(9, 0, "a")


class TensorMap(ctypes.Structure):
    """The TensorMap of sm90.hpp, in the place of a CUtensorMap; boxes are 128 bytes wide."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("columns", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("row_bytes", ctypes.c_uint64),
        ("element_bytes", ctypes.c_uint64),
        ("box_rows", ctypes.c_uint64),
        ("ends", ctypes.c_uint64),
        ("padding", ctypes.c_uint64 * 9),
    )


def tensor_maps(a: np.ndarray, columns: int, box_rows: int) -> Any:
    """Return two of a matrix, as kernels take them: of whole boxes, and of the rows that those leave over."""
    matrix = (a.ctypes.data, columns, len(a), a.strides[0], a.itemsize)
    rest = len(a) % box_rows or box_rows
    return (TensorMap * 2)(TensorMap(*matrix, box_rows, True), TensorMap(*matrix, rest, True))


class Launch(ctypes.Structure):
    """The Launch of sm90.hpp."""

    _fields_ = (
        ("arguments", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("grid", ctypes.c_int * 2),
        ("cluster", ctypes.c_int * 2),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("seed", ctypes.c_uint),
    )


def entry(kernel: str, namespace: str) -> str:
    """Return C++ that makes a kernel in a namespace one that `launch` finds."""
    how = "const cpu::Launch& how"
    return f'extern "C" const char* run_{kernel}({how}) {{ return cpu::launch({namespace}::{kernel}, how); }}'


def compile_library(
    compiler: str,
    source: str,
    headers: Path,
    folder: Path,
    arch: Arch = _SM90A,
    *,
    macros: Sequence[str] = (),
) -> Any:
    """Compile CUDA C++ for the CPU.

    Args:
        compiler: A C++17 compiler that takes GCC's options.
        source: Kernels, and an `entry` for each.
        headers: The include folder.
        folder: Where files go.
        arch: The target that the source is told of; SM90 has the instructions of those before.
        macros: What else is defined.
    """
    number = f"{arch.major}{arch.minor}"
    defines = [f"-D__CUDA_ARCH__={number}0"]
    if arch.suffix == "a":
        defines.append(f"-D__CUDA_ARCH_FEAT_SM{number}_ALL=1")
    defines += [f"-D{macro}" for macro in macros]
    (folder / "kernels.cu").write_text(source)
    command = [compiler, "-E", "-P", "-nostdinc", "-x", "c++", *defines, "-I", str(headers), "kernels.cu"]
    text = subprocess.run(
        command, cwd=folder, check=True, timeout=60, stdout=subprocess.PIPE, text=True
    ).stdout
    (folder / "kernels.cpp").write_text(f'#include "sm90.hpp"\n{translate(text)}')
    here = ["-I", str(Path(__file__).parent)]
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        *here,
        "kernels.cpp",
        "-o",
        "kernels.so",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=300, stderr=subprocess.PIPE)
    return ctypes.CDLL(str(folder / "kernels.so"))


def launch(
    library: Any,
    kernel: str,
    arguments: Any,
    copied: Sequence[np.ndarray],
    *,
    grid: tuple[int, int],
    cluster: tuple[int, int],
    threads: int,
    shared_bytes: int,
    seed: int,
) -> str:
    """Run a kernel whose CTAs all run at once.

    Args:
        library: From `compile_library`.
        kernel: Its name.
        arguments: Array of pointers to its arguments.
        copied: What copies to shared memory may read.
        grid: CTAs.
        cluster: CTAs of a cluster.
        threads: Of a CTA.
        shared_bytes: Dynamic shared memory of a CTA.
        seed: Of the order of threads and copies.

    Returns:
        What went wrong, or "".
    """
    edges = [edge for one in copied for edge in (one.ctypes.data, one.ctypes.data + one.nbytes)]
    ranges = (ctypes.c_void_p * len(edges))(*edges)
    how = Launch(
        ctypes.addressof(arguments),
        ctypes.addressof(ranges),
        len(copied),
        grid,
        cluster,
        threads,
        shared_bytes,
        seed,
    )
    function = getattr(library, f"run_{kernel}")
    function.restype = ctypes.c_char_p
    return bytes(function(ctypes.byref(how))).decode()
