"""The Machete family (warpgroup-level `wgmma`, SM90a): legality and resources.

What is computed here mirrors `cuda/billhook/kernel/machete.cuh`.
"""

from __future__ import annotations

from ..config import KernelConfig
from ..dtypes import U4B8
from . import base

FAMILY = "machete"
FEWEST_STAGES = 3  # wgmma may still read one while the next is computed and another filled
_ALIGNMENT = 1024  # of a stage: what wgmma's 128-byte swizzle repeats after


def threads(config: KernelConfig) -> int:
    """Return the threads of one CTA: a warpgroup for each strip of 64 output features."""
    return 128 * config.tile.strips


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    tile = config.tile
    stage = tile.tile_m * tile.tile_k * 2 + base.weight_bytes_per_stage(config)
    stage = -(-stage // _ALIGNMENT) * _ALIGNMENT
    return tile.stages * stage + tile.strips * base.SCRATCH_BYTES + base.BARRIER_BYTES


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    if (config.arch.capability, config.arch.suffix) != ((9, 0), "a"):
        return f"needs the target 9.0a, where wgmma is (got {config.arch})"
    why = base.wrong_types(config) or base.wrong_tile(config, largest_m=256, fewest_stages=FEWEST_STAGES)
    if why is None and config.types.b != U4B8:
        why = f"weights must be u4b8 (got {config.types.b}): other formats are served by the Marlin family"
    if why is None and threads(config) > 512:
        why = f"tile_n must be at most 256: four warpgroups (got {config.tile.tile_n})"
    # Accumulators: half a register per token and thread; 512 threads have 128 registers each.
    if why is None and config.tile.tile_m > 128 and threads(config) > 256:
        why = f"tile_m must be at most 128 with tile_n = {config.tile.tile_n} (got {config.tile.tile_m})"
    return why or base.too_large(config, shared_memory(config))


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether (code - 8) * scale is rounded to 16 bits before the MMA: for all group scales."""
    return config.group_size != -1
