"""A compiled kernel, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

from ..arch import Arch
from ..emit import SourceFile
from .resources import Resources


@dataclass(frozen=True)
class Unit:
    """One source to be compiled.

    Args:
        name: Kernel or module name, also the stem of its files.
        kind: "gemm" (one kernel called `name`) or "support" (kernels that route or pack).
        arch: The GPU target.
        source: The generated text.
        threads: Threads of one CTA; 0 where each launch decides.
        dynamic_shared: Dynamic shared memory of one CTA, bytes.
    """

    name: str
    kind: str
    arch: Arch
    source: SourceFile
    threads: int = 0
    dynamic_shared: int = 0


@dataclass(frozen=True)
class Artifact:
    """One compiled source.

    Args:
        unit: What was compiled.
        headers: Every header that entered: name -> content.
        key: The cache key: a hash of all that entered.
        compiler: The compiler's name and full version.
        cubin: Machine code.
        ptx: PTX text if the target asks for it, else "".
        entries: Kernel symbol -> resources, in source order.
        warnings: Lines of the compiler's log that warn of something.
        seconds: Wall time of the compilation, whenever that was.
        cached: Whether the cache had it.
    """

    unit: Unit
    headers: dict[str, str]
    key: str
    compiler: str
    cubin: bytes
    ptx: str
    entries: dict[str, Resources]
    warnings: list[str]
    seconds: float
    cached: bool

    @property
    def registers(self) -> int:
        """Registers of one thread (the most of any kernel in it)."""
        return max(entry.registers for entry in self.entries.values())

    @property
    def spills(self) -> int:
        """Bytes that one thread spills (the most of any kernel in it)."""
        return max(entry.spills for entry in self.entries.values())

    @property
    def shared_memory(self) -> int:
        """Shared memory of one CTA, static and dynamic, bytes (the most of any kernel in it)."""
        return self.unit.dynamic_shared + max(entry.static_shared for entry in self.entries.values())
