"""Kernels of the Machete family as functions on the CPU: their sources, compiled with `sm90_on_cpu.hpp`."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from billhook import families
from billhook.build.compile import kernel_unit
from billhook.build.headers import CUDA_ROOT
from billhook.config import KernelConfig
from billhook.dispatch import params
from cpu.kernels.ptx_to_cpp import translate

_DEFINES = ("-D__CUDA_ARCH__=900", "-D__CUDA_ARCH_FEAT_SM90_ALL=1")


class TensorMap(ctypes.Structure):
    """The TensorMap of sm90_on_cpu.hpp, in the place of a CUtensorMap."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("columns", ctypes.c_uint64),
        ("rows", ctypes.c_uint64),
        ("row_bytes", ctypes.c_uint64),
        ("element_bytes", ctypes.c_uint64),
        ("box_rows", ctypes.c_uint64),
        ("padding", ctypes.c_uint64 * 10),
    )


class Launch(ctypes.Structure):
    """The Launch of sm90_on_cpu.hpp."""

    _fields_ = (
        ("params", ctypes.c_void_p),
        ("map", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("grid", ctypes.c_int),
        ("cluster", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("seed", ctypes.c_uint),
    )


def compile_kernels(compiler: str, configs: Sequence[KernelConfig], folder: Path) -> Any:
    """Compile kernels into a library.

    Args:
        compiler: A C++17 compiler that takes GCC's options.
        configs: Kernels of the Machete family.
        folder: Where files go.
    """
    lines = ['#include "billhook/kernel/machete.cuh"']
    for config in configs:
        tensor_map = families.takes_tensor_map(config)
        call = f"{config.name}(*static_cast<const billhook::GemmParams*>(how.params)"
        call += ", *static_cast<const billhook::TensorMap*>(how.map))" if tensor_map else ")"
        lines += [f"namespace of_{config.name} {{", kernel_unit(config).source.text]
        lines += [f"static_assert(Config::threads == {families.threads(config)});"]
        lines += [f"static_assert(Config::shared_bytes == {families.shared_memory(config)});"]
        lines += [f'extern "C" const char* run_{config.name}(const cpu::Launch& how) {{']
        lines += [f"  return cpu::run(how, [&] {{ {call}; }});\n}}\n}}"]
    (folder / "kernels.cu").write_text("\n".join(lines))
    preprocess = [
        compiler,
        "-E",
        "-P",
        "-nostdinc",
        "-x",
        "c++",
        *_DEFINES,
        "-I",
        str(CUDA_ROOT),
        "kernels.cu",
    ]
    text = subprocess.run(
        preprocess, cwd=folder, check=True, timeout=60, capture_output=True, text=True
    ).stdout
    (folder / "kernels.cpp").write_text(f'#include "sm90_on_cpu.hpp"\n{translate(text)}')
    include = ["-I", str(Path(__file__).parent)]
    command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *include, "kernels.cpp", "-o", "k.so"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return ctypes.CDLL(str(folder / "k.so"))


def run(
    library: Any,
    config: KernelConfig,
    arrays: dict[str, np.ndarray],
    numbers: dict[str, int],
    *,
    grid: int,
    seed: int,
    mapped_rows: int = 0,
) -> str:
    """Run a kernel.

    Args:
        library: From `compile_kernels`.
        config: One of its kernels.
        arrays: By the names of `params.POINTERS`; those left out are null. `d` and `partials` are written.
        numbers: By the names of `params.NUMBERS`.
        grid: CTAs.
        seed: Of the order of threads and copies.
        mapped_rows: Rows of the activations that the tensor map covers.

    Returns:
        What went wrong, or "".
    """
    addresses = [arrays[name].ctypes.data if name in arrays else 0 for name in params.POINTERS]
    values = ctypes.create_string_buffer(params.LAYOUT.size)
    params.pack_into(values, 0, *addresses, *(numbers[name] for name in params.NUMBERS))
    edges = [edge for one in arrays.values() for edge in (one.ctypes.data, one.ctypes.data + one.nbytes)]
    ranges = (ctypes.c_void_p * len(edges))(*edges)
    size = config.types.a.bits // 8
    tensor_map = TensorMap(
        arrays["a"].ctypes.data,
        numbers["k"],
        mapped_rows,
        numbers["lda"] * size,
        size,
        config.tile.tile_m // config.tile.cluster,
    )
    function = getattr(library, f"run_{config.name}")
    function.restype = ctypes.c_char_p
    launch = Launch(
        ctypes.addressof(values),
        ctypes.addressof(tensor_map),
        ctypes.addressof(ranges),
        len(ranges) // 2,
        grid,
        config.tile.cluster,
        families.threads(config),
        families.shared_memory(config),
        seed,
    )
    return bytes(function(ctypes.byref(launch))).decode()
