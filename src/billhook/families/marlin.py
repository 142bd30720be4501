"""The Marlin family (warp-level `mma.sync`, SM80 and later): legality and resources.

`illegal` is the one predicate that plan, tune, dispatch and tests ask. The shared
memory computed here mirrors `cuda/billhook/kernel/marlin.cuh`.
"""

from __future__ import annotations

from ..config import STRIP, KernelConfig, Problem
from ..dtypes import BF16, F16, U4B8

FAMILY = "marlin"
GROUP_SIZES = (-1, 32, 64, 128)
BLOCK_BYTES = STRIP * STRIP // 2  # codes of one 64 x 64 block of 4-bit weights
ROW_PADDING = 16  # bytes after a row of activations, against bank conflicts
SCRATCH_BYTES_PER_WARP = 8 * (STRIP + 4) * 4  # 8 tokens x 64 features (+4 against bank conflicts), f32


def scale_bytes_per_stage(config: KernelConfig) -> int:
    """Return the bytes of group scales in one pipeline stage (0 for channel scales)."""
    if config.group_size == -1:
        return 0
    groups = max(1, config.tile.tile_k // config.group_size)
    return config.tile.warps_n * groups * STRIP * 2


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    tile = config.tile
    codes = tile.warps_n * tile.warps_k * BLOCK_BYTES
    activations = tile.tile_m * (tile.tile_k * 2 + ROW_PADDING)
    pipeline = tile.stages * (codes + activations + scale_bytes_per_stage(config))
    scratch = tile.warps_n * tile.warps_k * SCRATCH_BYTES_PER_WARP
    return pipeline + scratch + 128  # 128: mbarriers, one per stage


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    tile, types = config.tile, config.types
    if config.family != FAMILY:
        return f"family is {config.family!r}, not {FAMILY!r}"
    if config.arch.capability < (8, 0):
        return f"needs compute capability 8.0 or later (got {config.arch})"
    if types.a not in (F16, BF16):
        return f"activations must be f16 or bf16 (got {types.a})"
    if types.b is not U4B8:
        return f"weights must be u4b8 (got {types.b})"
    if types.s != types.a or types.c != types.a:
        return f"scales and output must have the activations' type {types.a} (got {types.s}, {types.c})"
    if config.group_size not in GROUP_SIZES:
        return f"group_size must be one of {GROUP_SIZES} (got {config.group_size})"
    if tile.tile_m % 8 or not 8 <= tile.tile_m <= 64:
        return f"tile_m must be a multiple of 8, at most 64 (got {tile.tile_m})"
    if tile.tile_n % STRIP or tile.tile_k % STRIP:
        return f"tile_n and tile_k must be multiples of {STRIP} (got {tile.tile_n}, {tile.tile_k})"
    if config.group_size > tile.tile_k:
        return f"tile_k must cover a group of {config.group_size} (got {tile.tile_k})"
    if not 64 <= tile.threads <= 512:
        return f"tile_n / 64 * tile_k / 64 must give 2 to 16 warps (got {tile.threads // 32})"
    if not 2 <= tile.stages <= 8:
        return f"stages must be 2 to 8 (got {tile.stages})"
    need, have = shared_memory(config), config.arch.limits.smem_per_cta
    if need > have:
        return f"needs {need} bytes of shared memory; a CTA on {config.arch} has {have}"
    return None


def unserved(config: KernelConfig, problem: Problem) -> str | None:
    """Return why this kernel does not serve this problem; None if it does.

    n and k must be multiples of 16; the packed weights are padded to blocks of 64.
    """
    if problem.m < 1:
        return f"m must be at least 1 (got {problem.m})"
    for name, value in (("n", problem.n), ("k", problem.k)):
        if value < 16 or value % 16:
            return f"{name} must be a positive multiple of 16 (got {value})"
    if problem.types != config.types:
        return f"types are {config.types}, the problem's {problem.types}"
    if problem.group_size != config.group_size:
        return f"group_size is {config.group_size}, the problem's {problem.group_size}"
    if problem.moe != config.indexed:
        return "is for MoE layers" if config.indexed else "is for dense layers"
    return None


def workspace(config: KernelConfig, ctas: int) -> int:
    """Return the bytes of partial sums that a launch of `ctas` CTAs needs.

    A CTA's share of the work begins and ends in at most two output tiles that it shares
    with others: two slots each. Every bit must be one before the first launch (a slot is
    its own flag); every launch leaves it so.
    """
    return 2 * ctas * config.tile.tile_m * config.tile.tile_n * 4


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether (code - 8) * scale is rounded to 16 bits before the MMA.

    The kernel does so where no registers are left for the sums of one group; the error
    bound has a term for it.
    """
    tile = config.tile
    if config.group_size == 32:
        scales_sums = tile.tile_m <= 8
    else:
        scales_sums = tile.tile_m <= 16 or (tile.tile_m == 32 and tile.threads <= 256)
    return config.group_size != -1 and not scales_sums


def ctas_per_sm(stages: int, sms: int, fitting: int) -> int:
    """Return how many CTAs a multiprocessor should get.

    As many as fit, unless each would then compute fewer than four stages: what a CTA
    costs to start and its partial sums weigh more than the latency it hides
    (docs/decisions/marlin-kernel.md).

    Args:
        stages: Pipeline stages of all output tiles together.
        sms: Multiprocessors of the GPU.
        fitting: CTAs of the kernel that one of them holds.
    """
    return min(fitting, max(1, stages // (4 * sms)))
