"""Kernel families: what is legal, and what it costs in resources, by `KernelConfig.family`.

`illegal` is the one predicate that plan, tune, dispatch and tests ask.
"""

from __future__ import annotations

from typing import Protocol

from ..config import KernelConfig
from . import machete, machete_work, marlin
from .base import unserved
from .machete_work import MULTIPROCESSORS, Work

__all__ = [
    "FAMILIES",
    "MULTIPROCESSORS",
    "Work",
    "boxes",
    "ctas_per_sm",
    "fewest_stages",
    "illegal",
    "rounds_weights",
    "shared_memory",
    "stages_per_cta",
    "tells_work",
    "threads",
    "unserved",
    "work",
    "work_step",
    "workspace",
]


class Family(Protocol):
    """What the module of a family answers; each function is described below."""

    FEWEST_STAGES: int
    STAGES_PER_CTA: int
    PARTIALS_PER_CTA: int

    def illegal(self, config: KernelConfig) -> str | None: ...
    def threads(self, config: KernelConfig) -> int: ...
    def shared_memory(self, config: KernelConfig) -> int: ...
    def rounds_weights(self, config: KernelConfig) -> bool: ...
    def boxes(self, config: KernelConfig) -> tuple[int, ...]: ...


class TellsWork(Protocol):
    """What the module of a family answers that tells its work; described below too."""

    def work(self, config: KernelConfig, m: int, n: int, k: int, multiprocessors: int) -> Work: ...
    def step(self, config: KernelConfig) -> int: ...


FAMILIES: dict[str, Family] = {marlin.FAMILY: marlin, machete.FAMILY: machete}
_WORK: dict[str, TellsWork] = {machete.FAMILY: machete_work}


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    if config.family not in FAMILIES:
        return f"there is no family {config.family!r}; there are {', '.join(FAMILIES)}"
    return FAMILIES[config.family].illegal(config)


def fewest_stages(family: str) -> int:
    """Return the depth of the shallowest pipeline that a family has."""
    return FAMILIES[family].FEWEST_STAGES


def threads(config: KernelConfig) -> int:
    """Return the threads of one CTA."""
    return FAMILIES[config.family].threads(config)


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    return FAMILIES[config.family].shared_memory(config)


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether a weight's product with its scale is rounded to 16 bits before the MMA."""
    return FAMILIES[config.family].rounds_weights(config)


def boxes(config: KernelConfig) -> tuple[int, ...]:
    """Return the rows of A in a box, for each pair of tensor maps that the kernel takes after its parameters.

    The first of a pair is of whole boxes, the second of the rows that are left of A below them.
    """
    return FAMILIES[config.family].boxes(config)


def workspace(config: KernelConfig, ctas: int) -> int:
    """Return the bytes of partial sums that a launch of `ctas` CTAs needs.

    Every bit must be one before the first launch (a partial sum is its own flag); every
    launch leaves it so.
    """
    return ctas * FAMILIES[config.family].PARTIALS_PER_CTA * config.tile.tile_m * config.tile.tile_n * 4


def stages_per_cta(config: KernelConfig) -> int:
    """Return how many stages are worth a CTA more on a multiprocessor."""
    return FAMILIES[config.family].STAGES_PER_CTA


def ctas_per_sm(config: KernelConfig, stages: int, sms: int, fitting: int) -> int:
    """Return how many CTAs a multiprocessor should get.

    As many as fit, unless each would then compute too few stages: what a CTA costs to start and its
    partial sums weigh more than the latency it hides.

    Args:
        config: The kernel.
        stages: Pipeline stages of all output tiles together.
        sms: Multiprocessors of the GPU.
        fitting: CTAs of the kernel that one of them holds.
    """
    return min(fitting, max(1, stages // (stages_per_cta(config) * sms)))


def tells_work(family: str) -> bool:
    """Return whether a family tells what its kernels do for a dense problem, which predicts their time."""
    return family in _WORK


def work(config: KernelConfig, m: int, n: int, k: int, multiprocessors: int = MULTIPROCESSORS) -> Work:
    """Return what a kernel does for a dense problem, one CTA on each multiprocessor.

    Args:
        config: A kernel for dense layers, of a family that tells its work.
        m: Rows of A.
        n: Output features.
        k: Input features.
        multiprocessors: Of the GPU.
    """
    return _WORK[config.family].work(config, m, n, k, multiprocessors)


def work_step(config: KernelConfig) -> int:
    """Return the rows that its work goes by: it is the same from above one multiple of this to the next."""
    return _WORK[config.family].step(config)
