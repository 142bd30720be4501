"""The Marlin family (warp-level `mma.sync`, SM75 and later): legality and resources.

What is computed here mirrors `cuda/billhook/kernel/marlin.cuh`.
"""

from __future__ import annotations

from ..config import KernelConfig
from ..dtypes import E2M1F, E4M3FN, F16, U4, U4B8, U8B128
from . import base

FAMILY = "marlin"
FEWEST_STAGES = 2  # one to compute while the other is filled
STAGES_PER_CTA = 4  # fewer do not pay for a CTA more on a multiprocessor (docs/decisions/marlin-kernel.md)
PARTIALS_PER_CTA = 2  # its share of the work begins and ends in the middle of an output tile
ROW_PADDING = 16  # bytes after a row of activations, against bank conflicts
NARROW_WEIGHTS = (U4B8, U4, U8B128, E4M3FN, E2M1F)  # those that fit the 8 bits of some activations


def threads(config: KernelConfig) -> int:
    """Return the threads of one CTA: a warp for each block of 64 x 64 weights of a stage."""
    return 32 * config.tile.strips * config.tile.blocks


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    tile = config.tile
    warps = tile.strips * tile.blocks
    activations = tile.tile_m * (tile.tile_k * config.types.a.bits // 8 + ROW_PADDING)
    stage = activations + base.weight_bytes_per_stage(config)
    return tile.stages * stage + warps * base.SCRATCH_BYTES + base.BARRIER_BYTES


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    why = (
        base.wrong_types(config, NARROW_WEIGHTS, narrow_groups=True)
        or base.wrong_tile(config, largest_m=64, fewest_stages=FEWEST_STAGES)
        or _wrong_arch(config)
    )
    if why is None and config.group_size > config.tile.tile_k:
        why = f"tile_k must cover a group of {config.group_size} (got {config.tile.tile_k})"
    if why is None and config.tile.cluster > 1:
        why = f"cluster must be 1 for marlin (got {config.tile.cluster})"
    if why is None and config.tile.pingpong:
        why = f"pingpong must be false for marlin, whose warps share each tile (got {config.tile})"
    if why is None and config.grouped:
        why = "marlin looks its rows up; they must not be grouped"
    if why is None and not 64 <= threads(config) <= 512:
        why = f"tile_n / 64 * tile_k / 64 must give 2 to 16 warps (got {threads(config) // 32})"
    return why or base.too_large(config, shared_memory(config))


def _wrong_arch(config: KernelConfig) -> str | None:
    """Return what the kernel asks of its target that this one lacks."""
    arch, types = config.arch, config.types
    if base.folds(types):
        return (
            "marlin does not fold scales into weights (w4a8): 9.0a does, with machete; elsewhere keep the "
            f"weights u4b8, whose scales have the type {types.c}"
        )
    if types.a == E4M3FN and arch.capability < (8, 9):
        return f"e4m3fn activations need compute capability 8.9 or later (got {arch})"
    if arch.capability >= (8, 0):
        return None
    if types.c != F16:
        return f"{types.c} needs compute capability 8.0 or later; before, the output must be f16 (got {arch})"
    if config.tile.stages != 2:
        return (
            f"stages must be 2 on {arch}, which copies through registers: one stage is on its way while "
            f"another is computed (got {config.tile.stages})"
        )
    return None


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether a weight's product with its scale is rounded to 16 bits before the MMA.

    The kernel multiplies them where no registers are left for the sums of one group; the
    error bound has a term for it. A product of e2m1 and a scale of 8 bits is exact.
    """
    return config.group_size != -1 and not scales_sums(config) and config.types.b != E2M1F


def scales_sums(config: KernelConfig) -> bool:
    """Return whether group scales multiply the sums of one group in float32, not each weight."""
    tile = config.tile
    if config.types.a.bits == 8:
        return True
    if config.group_size == 16:  # one MMA
        return False
    if config.group_size == 32:
        return tile.tile_m <= 8
    if config.arch.capability < (8, 0):  # a stage on its way takes registers too
        return tile.tile_m <= 16
    return tile.tile_m <= 16 or (tile.tile_m == 32 and threads(config) <= 256)


def boxes(config: KernelConfig) -> tuple[int, ...]:
    """Return the rows of A that come at once, by TMA: none do."""
    return ()
