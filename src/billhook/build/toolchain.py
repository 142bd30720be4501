"""The compilers on this machine: NVRTC, which Billhook uses, and nvcc, which it only reports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from ..errors import ToolchainError

INSTALL = "pip install 'billhook[cuda]'"


@dataclass(frozen=True)
class Compiler:
    """A compiler that was found.

    Args:
        version: Its full version, such as `13.0.88`.
        path: Where it lies; "" if the system does not tell.
    """

    version: str
    path: str


def nvrtc_bindings() -> ModuleType:
    """Return the Python bindings of NVRTC.

    Raises:
        ToolchainError: `cuda-bindings` is not installed.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise ToolchainError(
            f"the Python package cuda-bindings cannot be imported ({error}); run: {INSTALL}"
        ) from error
    module: ModuleType = nvrtc
    return module


@cache
def find_nvrtc() -> Compiler:
    """Return the NVRTC that compiles kernels: the `nvidia-cuda-nvrtc` package's, else a CUDA toolkit's.

    Raises:
        ToolchainError: There is none; the message says how to get it.
    """
    nvrtc = nvrtc_bindings()
    try:
        ptx = _probe(nvrtc)
    except RuntimeError as error:  # how cuda-bindings says that it found no library
        raise ToolchainError(f"NVRTC was not found ({error}); run: {INSTALL}") from error
    # NVRTC itself tells major and minor only; the PTX that it writes names the build.
    match = re.search(r"\bV(\d+\.\d+\.\d+)", ptx)
    if match is None:
        raise ToolchainError(f"NVRTC does not tell its version; install a known one: {INSTALL}")
    return Compiler(match[1], _loaded_library("libnvrtc.so"))


def _probe(nvrtc: ModuleType) -> str:
    _, program = nvrtc.nvrtcCreateProgram(b"", b"probe.cu", 0, [], [])
    nvrtc.nvrtcCompileProgram(program, 0, [])
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytes(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode(errors="replace")


def _loaded_library(stem: str) -> str:
    """Return the path of a library that this process has mapped (Linux), else ""."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if f"/{stem}" in line)
    return next(paths, "")


def find_nvcc() -> Compiler | None:
    """Return nvcc from `CUDA_HOME`, `CUDA_PATH`, `PATH` or /usr/local/cuda; None if it is in none of them."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes if home]
    found = next(
        filter(None, [*places, shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]), None
    )
    if found is None:
        return None
    try:
        said = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=20, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bV(\d+\.\d+\.\d+)", said)
    return Compiler(match[1] if match else "unknown", found)
