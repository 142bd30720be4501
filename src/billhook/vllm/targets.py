"""GPU targets as the build of a vLLM tree lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .. import arch as archs
from ..arch import Arch
from ..errors import ArchError

# Capabilities that stand in vLLM's lists, though Billhook compiles for none of them: the first two have
# no Marlin kernels, 10.1 is what CUDA 12 calls 11.0. The trees' own generators take them, so do we.
_LISTED = re.compile(r"(?:sm_?)?(7\.?0|7\.?2|10\.?1)([af]?)(\+ptx)?", re.IGNORECASE)


def parse_targets(texts: str | Iterable[str]) -> tuple[Arch, ...]:
    """Parse a list of targets, keeping order and dropping repeats.

    Args:
        texts: Targets separated by commas, semicolons or spaces, or several such texts; or `native`.

    Raises:
        ArchError: The list is empty, a target is wrong, `native` finds no GPU, or there is no kernel
            for any of them.
    """
    joined = texts if isinstance(texts, str) else " ".join(texts)
    found: dict[Arch, None] = {}
    for word in re.split(r"[,;\s]+", joined):
        listed = _LISTED.fullmatch(word)
        if listed:
            digits = listed[1].replace(".", "")
            capability = int(digits[:-1]), int(digits[-1])
            found[Arch(*capability, suffix=listed[2].lower(), ptx=listed[3] is not None)] = None
        elif word:
            found.update(dict.fromkeys(archs.parse_list(word, native_archs)))
    if not found:
        archs.parse_list("")  # raises, in the words used everywhere
    if all(arch.capability < (7, 5) for arch in found):
        raise ArchError(f"no kernels exist for {', '.join(map(str, found))}; name a target from 7.5 on")
    return tuple(found)


def native_archs() -> list[Arch]:
    """Return the targets of this machine's GPUs."""
    from ..driver import native_archs as ask_driver

    return list(ask_driver())
