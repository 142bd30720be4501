"""NVIDIA's own account of the hardware: the headers of the nvidia-cutlass package, compiled by NVRTC.

The kernels use none of them (docs/decisions/own-ptx.md). Tests ask them what an instruction is called, how a
descriptor is made up and where an operand's elements lie, and compare.
"""

from __future__ import annotations

import importlib.util
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from billhook.build.headers import CUDA_ROOT
from billhook.build.toolchain import find_nvrtc, nvrtc_bindings
from billhook.errors import ToolchainError

INSTALL = "pip install --no-deps -r tests/cpu/cutlass/requirements.txt"


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source.

    Args:
        ptx: PTX text.
        cubin: Machine code, an ELF file.
    """

    ptx: str
    cubin: bytes

    def machine_code(self, kernel: str) -> bytes:
        """Return the instructions of a kernel."""
        return _section(self.cubin, f".text.{kernel}")

    def table(self, name: str) -> npt.NDArray[np.uint32]:
        """Return a constant array of uint32."""
        match = re.search(rf"\b{name}\[(\d+)\] = \{{([^}}]*)\}}", self.ptx)
        assert match, f"no table {name}"
        read = np.fromstring(match[2], np.uint8, sep=",")
        whole = np.zeros(int(match[1]), np.uint8)  # zeros at the end are left out
        whole[: len(read)] = read
        return whole.view(np.uint32)


def include_folders() -> list[Path]:
    """Return the folders of CuTe's, CUTLASS's and CUDA's headers; skip the test if there are none."""
    package = importlib.util.find_spec("cutlass_library")
    if package is None or package.submodule_search_locations is None:
        pytest.skip(f"the nvidia-cutlass package is not installed: {INSTALL}")
    library = Path(package.submodule_search_locations[0])
    cuda = library.parent / "nvidia" / "cu13" / "include"
    folders = [library / "source" / "include", cuda, cuda / "cccl"]
    for folder in folders:
        if not folder.is_dir():
            pytest.skip(f"{folder} does not exist: {INSTALL}")
    return folders


@cache
def compile_source(source: str) -> Compiled:
    """Compile CUDA C++ for SM90a that includes CuTe's headers and ours."""
    folders = [*include_folders(), CUDA_ROOT]
    try:
        find_nvrtc()
    except ToolchainError as error:
        pytest.skip(str(error))
    nvrtc = nvrtc_bindings()
    options = [
        "--gpu-architecture=sm_90a",
        "--std=c++17",
        "-default-device",
        *(f"-I{one}" for one in folders),
    ]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"referee.cu", 0, [], [])
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [one.encode() for one in options])
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, _fetch(nvrtc, "ProgramLog", program).decode()
    ptx, cubin = _fetch(nvrtc, "PTX", program), _fetch(nvrtc, "CUBIN", program)
    nvrtc.nvrtcDestroyProgram(program)
    return Compiled(ptx.rstrip(b"\0").decode(), cubin)


def _fetch(nvrtc: object, what: str, program: object) -> bytes:
    _, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    buffer = bytes(size)
    getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    return buffer


def _section(elf: bytes, name: str) -> bytes:
    """Return the content of a section of a 64-bit little-endian ELF file."""
    (headers_at,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, headers_at + i * size) for i in range(count)]
    names_at = headers[names][4]
    for name_at, _, _, _, at, length in headers:
        start = names_at + name_at
        if elf[start : elf.index(b"\0", start)].decode() == name:
            return elf[at : at + length]
    raise LookupError(f"no section {name}")
