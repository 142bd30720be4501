"""What a compiled kernel uses, read from ptxas's verbose output, which is part of every NVRTC log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ToolchainError


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel, as ptxas reports them.

    Args:
        registers: Registers of one thread.
        static_shared: Shared memory declared in the source, bytes per CTA.
        stack: Local memory of one thread beside spills, bytes.
        spill_stores: Bytes that one thread stores to local memory for want of registers.
        spill_loads: Bytes that one thread loads back.
    """

    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int

    @property
    def spills(self) -> int:
        """Bytes spilled: the larger of stores and loads."""
        return max(self.spill_stores, self.spill_loads)


_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")
# C75xx: ptxas serialises wgmma or ignores a register limit; it prints them as "info".
_WARNING = re.compile(r"\bwarning\b|\(C75\d\d\)|Potential Performance Loss", re.IGNORECASE)


def read_resources(log: str) -> dict[str, Resources]:
    """Return the resources of every kernel in a compiler log.

    Args:
        log: An NVRTC log of a compilation with `--ptxas-options=-v`.

    Returns:
        Kernel symbol -> resources, in the log's order.

    Raises:
        ToolchainError: A kernel's numbers are missing: a compiler whose output is unknown.
    """
    found: dict[str, Resources] = {}
    entry = function = ""
    frame = {"": (0, 0, 0)}
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry = match[1]
        elif match := _PROPERTIES.search(line):
            function = match[1]
        elif match := _FRAME.search(line):
            stack, stores, loads = (int(number) for number in match.groups())
            frame[function] = (stack, stores, loads)
        elif (match := _USED.search(line)) and entry in frame:
            shared = _SHARED.search(match[2])
            found[entry] = Resources(int(match[1]), int(shared[1]) if shared else 0, *frame[entry])
    if not found:
        raise ToolchainError(f"the compiler reported no registers and no spills; its log was:\n{log}")
    return found


def read_warnings(log: str) -> list[str]:
    """Return the lines of a compiler log that warn of something, stripped, without repeats."""
    return list(dict.fromkeys(line.strip() for line in log.splitlines() if _WARNING.search(line)))
