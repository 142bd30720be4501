"""GPU targets: parsing their spellings, and what each can do.

Accepted spellings of one target: `80`, `8.0`, `sm_80`, `sm80`, `9.0a`, `sm_90a`, `12.0f`,
each optionally followed by `+PTX`; `native` where a GPU is. A list separates
them by commas, semicolons or spaces; repeats are dropped, order is kept.

Source: CUDA C++ Programming Guide, "Compute Capabilities", tables of features
and technical specifications per compute capability (CUDA 13.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import ArchError


@dataclass(frozen=True)
class ArchLimits:
    """Hardware limits of one compute capability.

    Args:
        smem_per_cta: Largest opt-in shared memory of one CTA, bytes.
        smem_per_sm: Shared memory of one SM available to CTAs, bytes.
        threads_per_sm: Resident threads of one SM.
    """

    smem_per_cta: int
    smem_per_sm: int
    threads_per_sm: int


_KIB = 1024
_LIMITS: dict[tuple[int, int], ArchLimits] = {
    (7, 5): ArchLimits(64 * _KIB, 64 * _KIB, 1024),
    (8, 0): ArchLimits(163 * _KIB, 164 * _KIB, 2048),
    (8, 6): ArchLimits(99 * _KIB, 100 * _KIB, 1536),
    (8, 7): ArchLimits(163 * _KIB, 164 * _KIB, 1536),
    (8, 9): ArchLimits(99 * _KIB, 100 * _KIB, 1536),
    (9, 0): ArchLimits(227 * _KIB, 228 * _KIB, 2048),
    (10, 0): ArchLimits(227 * _KIB, 228 * _KIB, 2048),
    (10, 3): ArchLimits(227 * _KIB, 228 * _KIB, 2048),
    (11, 0): ArchLimits(227 * _KIB, 228 * _KIB, 1536),
    (12, 0): ArchLimits(99 * _KIB, 100 * _KIB, 1536),
    (12, 1): ArchLimits(99 * _KIB, 100 * _KIB, 1536),
}

_SPELLING = re.compile(r"(?:sm_?)?(?:(\d+)\.(\d)|(\d{2,3}))([af]?)(\+ptx)?", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Arch:
    """One GPU target.

    Args:
        major: Compute capability, first number.
        minor: Compute capability, second number.
        suffix: "" (portable), "a" (this chip alone) or "f" (this family).
        ptx: Whether PTX is asked for beside the machine code (`+PTX`).
    """

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def capability(self) -> tuple[int, int]:
        """(major, minor)."""
        return (self.major, self.minor)

    @property
    def sm(self) -> str:
        """The name used in kernel names: `sm80`, `sm90a`."""
        return f"sm{self.major}{self.minor}{self.suffix}"

    @property
    def target(self) -> str:
        """The compiler's name for machine code: `sm_80`, `sm_90a`."""
        return f"sm_{self.major}{self.minor}{self.suffix}"

    @property
    def dotted(self) -> str:
        """The CMake spelling, without `+PTX`: `8.0`, `9.0a`."""
        return f"{self.major}.{self.minor}{self.suffix}"

    @property
    def limits(self) -> ArchLimits:
        """Hardware limits of this compute capability."""
        return _LIMITS[self.capability]

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether machine code for this target runs on a GPU of `capability`.

        Portable code runs on the same major with an equal or higher minor; `a`
        code on that very capability; `f` code within the family (the same major,
        an equal or higher minor).
        """
        if self.suffix == "a":
            return capability == self.capability
        return capability[0] == self.major and capability[1] >= self.minor

    def __str__(self) -> str:
        return self.dotted + ("+PTX" if self.ptx else "")


def supported() -> list[str]:
    """Return the compute capabilities Billhook knows, as `8.0`-style text."""
    return [f"{major}.{minor}" for major, minor in _LIMITS]


def parse(text: str) -> Arch:
    """Parse one target.

    Args:
        text: One of the spellings in the module's description, except `native`.

    Raises:
        ArchError: The spelling is not one of those, or the capability is unknown.
    """
    match = _SPELLING.fullmatch(text.strip())
    if not match:
        raise ArchError(f"{text!r} is not a GPU architecture; write it like 8.0, 80, sm_80, 9.0a or 9.0+PTX")
    major, minor, digits, suffix, ptx = match.groups()
    if digits:
        major, minor = digits[:-1], digits[-1]
    capability = (int(major), int(minor))
    if capability not in _LIMITS:
        raise ArchError(f"GPU architecture {text!r} is not supported; supported: {', '.join(supported())}")
    suffix = suffix.lower()
    if suffix == "a" and capability < (9, 0):
        raise ArchError(f"{text!r}: the suffix 'a' exists from 9.0 on; write {major}.{minor}")
    if suffix == "f" and capability < (10, 0):
        raise ArchError(f"{text!r}: the suffix 'f' exists from 10.0 on; write {major}.{minor}")
    return Arch(*capability, suffix=suffix, ptx=ptx is not None)


def parse_list(text: str | Iterable[str], native: Callable[[], Iterable[Arch]] | None = None) -> list[Arch]:
    """Parse a list of targets, keeping order and dropping repeats.

    Args:
        text: Targets separated by commas, semicolons or spaces; or several such texts.
        native: Answers the GPUs of this machine; asked only when `native` is written.

    Raises:
        ArchError: The list is empty, a target is wrong, or `native` finds no GPU.
    """
    texts = [text] if isinstance(text, str) else list(text)
    words = [word for one in texts for word in re.split(r"[,;\s]+", one) if word]
    if not words:
        raise ArchError("no GPU architecture given; name at least one, such as 9.0a or 8.0,8.9")
    found: dict[Arch, None] = {}
    for word in words:
        if word.lower() != "native":
            found[parse(word)] = None
            continue
        gpus = list(native()) if native else []
        if not gpus:
            raise ArchError("architecture 'native' needs a GPU, and none was found; name one, such as 9.0a")
        found.update(dict.fromkeys(gpus))
    return list(found)
