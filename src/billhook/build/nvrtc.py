"""Compile one source with NVRTC.

The compiler sees nothing but what it is handed: headers go in as text, never as a
folder. So a cache key over the same texts covers all that can change the result.
NVRTC compiles in several threads at once (cuda-bindings releases the lock of the
interpreter meanwhile), so no process pool is needed: two kernels on two cores took
0.55 to 0.6 of the time of one after the other (NVRTC 13.0 and 13.5).

Source: NVRTC documentation, "Supported Compile Options" (CUDA 13.0).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..arch import Arch
from ..errors import CompileError, InputError, ToolchainError
from .toolchain import INSTALL, find_nvrtc, nvrtc_bindings


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source.

    Args:
        cubin: Machine code.
        ptx: PTX text, for targets that ask for it (`9.0+PTX`); else "".
        log: The compiler's words, ptxas's resource report among them.
        seconds: Wall time of the compilation.
    """

    cubin: bytes
    ptx: str
    log: str
    seconds: float


def compile_options(arch: Arch) -> tuple[str, ...]:
    """Return the options that every kernel for `arch` is compiled with.

    With `BILLHOOK_RACECHECK=1` they are those of kernels that compute-sanitizer's racecheck can follow.

    Raises:
        InputError: `BILLHOOK_RACECHECK` is neither 1 nor 0.
    """
    options = (
        f"--gpu-architecture={arch.target}",
        "--std=c++17",
        "--minimal",  # leaves out textures, cooperative groups and device launches: no kernel uses them
        "--no-source-include",  # the current folder must not matter
        "--ptxas-options=-v",  # the resource report
        "--no-cache",  # of the driver: what it holds comes without a report, and Billhook has one of its own
    )
    return (*options, "-DBILLHOOK_EVERY_LANE_ARRIVES") if _is_for_racecheck() else options


def _is_for_racecheck() -> bool:
    asked = os.environ.get("BILLHOOK_RACECHECK") or "0"
    if asked not in ("0", "1"):
        raise InputError(
            f"BILLHOOK_RACECHECK is {asked!r}: set it to 1 for kernels that racecheck can follow, or unset it"
        )
    return asked == "1"


def compile_text(name: str, text: str, headers: dict[str, str], arch: Arch) -> Compiled:
    """Compile CUDA C++ to a cubin.

    Args:
        name: The source's name in messages.
        text: The source.
        headers: Every header it includes: name as in `#include` -> content.
        arch: The target.

    Raises:
        InputError: As `compile_options`.
        CompileError: The source does not compile; `log` holds the compiler's words.
        ToolchainError: NVRTC is missing, or too old for `arch`.
    """
    nvrtc = nvrtc_bindings()
    _check_target(nvrtc, arch)
    started = time.perf_counter()
    created, program = nvrtc.nvrtcCreateProgram(
        text.encode(),
        name.encode(),
        len(headers),
        [content.encode() for content in headers.values()],
        [header.encode() for header in headers],
    )
    if created != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise ToolchainError(f"NVRTC refused to create a program for {name}: {created.name}")
    try:
        options = [option.encode() for option in compile_options(arch)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _fetch(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(
                f"{name} did not compile for {arch.target} ({result.name})", log.strip() or result.name
            )
        cubin = _fetch(nvrtc, "CUBIN", program)
        ptx = _fetch(nvrtc, "PTX", program).rstrip(b"\0").decode() if arch.ptx else ""
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(cubin, ptx, log, time.perf_counter() - started)


def _check_target(nvrtc: ModuleType, arch: Arch) -> None:
    _, count = nvrtc.nvrtcGetNumSupportedArchs()
    _, known = nvrtc.nvrtcGetSupportedArchs()
    if int(f"{arch.major}{arch.minor}") not in known[:count]:
        raise ToolchainError(
            f"NVRTC {find_nvrtc().version} does not compile for {arch.target}; update it: {INSTALL} --upgrade"
        )


def _fetch(nvrtc: ModuleType, what: str, program: Any) -> bytes:
    """Fetch one output of a program: NVRTC tells its size, then fills a buffer."""
    asked, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    buffer = bytes(size)
    (filled,) = getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
    for result in (asked, filled):
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise ToolchainError(f"NVRTC did not hand out its {what}: {result.name}")
    return buffer
