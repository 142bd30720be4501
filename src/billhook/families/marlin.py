"""The Marlin family (warp-level `mma.sync`, SM80 and later): legality and resources.

What is computed here mirrors `cuda/billhook/kernel/marlin.cuh`.
"""

from __future__ import annotations

from ..config import KernelConfig
from ..dtypes import E2M1F
from . import base

FAMILY = "marlin"
FEWEST_STAGES = 2  # one to compute while the other is filled
PARTIALS_PER_CTA = 2  # its share of the work begins and ends in the middle of an output tile
ROW_PADDING = 16  # bytes after a row of activations, against bank conflicts


def threads(config: KernelConfig) -> int:
    """Return the threads of one CTA: a warp for each block of 64 x 64 weights of a stage."""
    return 32 * config.tile.strips * config.tile.blocks


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    tile = config.tile
    warps = tile.strips * tile.blocks
    activations = tile.tile_m * (tile.tile_k * 2 + ROW_PADDING)
    stage = activations + base.weight_bytes_per_stage(config)
    return tile.stages * stage + warps * base.SCRATCH_BYTES + base.BARRIER_BYTES


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    if config.arch.capability < (8, 0):
        return f"needs compute capability 8.0 or later (got {config.arch})"
    if config.types.a.bits == 8:
        return f"marlin multiplies 16-bit activations; those of 8 need machete on 9.0a (got {config.types.a})"
    why = base.wrong_types(config) or base.wrong_tile(config, largest_m=64, fewest_stages=FEWEST_STAGES)
    if why is None and config.group_size > config.tile.tile_k:
        why = f"tile_k must cover a group of {config.group_size} (got {config.tile.tile_k})"
    if why is None and config.tile.cluster > 1:
        why = f"cluster must be 1 for marlin (got {config.tile.cluster})"
    if why is None and config.grouped:
        why = "marlin looks its rows up; they must not be grouped"
    if why is None and not 64 <= threads(config) <= 512:
        why = f"tile_n / 64 * tile_k / 64 must give 2 to 16 warps (got {threads(config) // 32})"
    return why or base.too_large(config, shared_memory(config))


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether a weight's product with its scale is rounded to 16 bits before the MMA.

    The kernel multiplies them where no registers are left for the sums of one group; the
    error bound has a term for it. A product of e2m1 and a scale of 8 bits is exact.
    """
    return config.group_size != -1 and not scales_sums(config) and config.types.b != E2M1F


def scales_sums(config: KernelConfig) -> bool:
    """Return whether group scales multiply the sums of one group in float32, not each weight."""
    tile = config.tile
    if config.group_size == 16:  # one MMA
        return False
    if config.group_size == 32:
        return tile.tile_m <= 8
    return tile.tile_m <= 16 or (tile.tile_m == 32 and threads(config) <= 256)


def takes_tensor_map(config: KernelConfig) -> bool:
    """Return whether the kernel's second argument is a tensor map of the activations: never."""
    return False
