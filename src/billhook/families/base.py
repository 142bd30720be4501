"""What all kernel families share: packed weights, stream-K, one struct of parameters."""

from __future__ import annotations

from functools import cache

from ..config import STRIP, GemmTypes, KernelConfig, Problem
from ..dtypes import BF16, E4M3FN, F16, S8, U4B8, DType
from ..weights import FORMATS

SCRATCH_BYTES = 8 * (STRIP + 4) * 4  # sums of 8 tokens x 64 features (+4 against bank conflicts), f32
BARRIER_BYTES = 128  # mbarriers, one per stage
OUTPUTS = (F16, BF16)
ACTIVATIONS = (*OUTPUTS, E4M3FN, S8)
_S8_MAX_K = (1 << 17) - 1  # a product is at most 2^14 in magnitude: more of them may leave 32 bits


def wrong_types(
    config: KernelConfig, narrow_weights: tuple[DType, ...] = (U4B8,), narrow_groups: bool = False
) -> str | None:
    """Return why no kernel has these types or this group size; None if some may.

    Args:
        config: The kernel.
        narrow_weights: Weights that its family multiplies by 8-bit activations.
        narrow_groups: Whether the family multiplies them so under group scales too.
    """
    types = config.types
    if types.a.bits == 8 and types.b not in narrow_weights:
        known = ", ".join(map(str, narrow_weights))
        return f"{config.family} multiplies 8-bit activations by weights of {known} (got {types.b})"
    if types.a.bits == 8 and config.group_size != -1 and not narrow_groups:
        return (
            f"{config.family} has no group_size of {config.group_size} with {types.a} activations: a weight "
            "times the scale of its group does not fit 8 bits"
        )
    return _wrong_types(types, config.group_size)


@cache
def folds(types: GemmTypes) -> bool:
    """Return whether a weight is its code times its scale, rounded to e4m3 (w4a8)."""
    return any(one.folded and (one.weight, one.scale) == (types.b, types.s) for one in FORMATS.values())


@cache
def _wrong_types(types: GemmTypes, group_size: int) -> str | None:
    if types.a not in ACTIVATIONS:
        return f"activations must be one of {', '.join(map(str, ACTIVATIONS))} (got {types.a})"
    if types.a in OUTPUTS and types.c != types.a:
        return f"the output must have the activations' type {types.a} (got {types.c})"
    if types.c not in OUTPUTS:
        return f"the output must be f16 or bf16 beside 8-bit activations (got {types.c})"
    if folds(types) and types.a.bits == 16:
        return (
            f"weights with folded scales (w4a8) are multiplied by e4m3fn activations alone (got {types.a}); "
            "u4b8 weights are by 16 bits"
        )
    of_weight = [one for one in FORMATS.values() if one.weight == types.b]
    if not of_weight:
        known = ", ".join(dict.fromkeys(str(one.weight) for one in FORMATS.values()))
        return f"weights must be one of {known} (got {types.b})"
    of_both = [one for one in of_weight if types.a in one.activations + one.narrow_activations]
    if not of_both:
        held = (one for one in FORMATS.values() if types.a in one.narrow_activations)
        known = ", ".join(dict.fromkeys(str(one.weight) for one in held))
        return f"weights must be of {known} to be exact in {types.a} (got {types.b})"
    fitting = [one for one in of_both if types.s == one.scale_type(types.c)]
    if not fitting:
        known = ", ".join(str(one.scale_type(types.c)) for one in of_both)
        return f"scales of {types.b} weights under {types.a} activations must be {known} (got {types.s})"
    (one,) = fitting
    if types.c not in one.outputs:
        known = " or ".join(map(str, one.outputs))
        return f"the output must be {known} with {types.s} scales (got {types.c})"
    if group_size not in one.group_sizes:
        sizes = tuple(sorted(one.group_sizes))
        return f"group_size must be one of {sizes} for {types.b} weights (got {group_size})"
    return None


def wrong_tile(config: KernelConfig, largest_m: int, fewest_stages: int) -> str | None:
    """Return why no kernel has this tile; None if some may."""
    tile = config.tile
    if tile.tile_m % 8 or not 8 <= tile.tile_m <= largest_m:
        return f"tile_m must be a multiple of 8, at most {largest_m} (got {tile.tile_m})"
    if tile.tile_n % STRIP or tile.tile_k % STRIP:
        return f"tile_n and tile_k must be multiples of {STRIP} (got {tile.tile_n}, {tile.tile_k})"
    if config.group_size != -1 and tile.tile_k % config.group_size and config.group_size % tile.tile_k:
        return (
            f"tile_k must divide a group of {config.group_size}, or be a multiple of it (got {tile.tile_k})"
        )
    if not fewest_stages <= tile.stages <= 8:
        return f"stages must be {fewest_stages} to 8 (got {tile.stages})"
    return None


def too_large(config: KernelConfig, shared_memory: int) -> str | None:
    """Return why a CTA's shared memory does not fit its target; None if it does."""
    have = config.arch.limits.smem_per_cta
    if shared_memory > have:
        return f"needs {shared_memory} bytes of shared memory; a CTA on {config.arch} has {have}"
    return None


def weight_bytes_per_stage(config: KernelConfig) -> int:
    """Return the bytes of codes, group scales (none for channel scales) and zero points in one stage."""
    tile, types = config.tile, config.types
    groups = 1 if config.group_size == -1 else max(1, tile.tile_k // config.group_size)
    bits = STRIP * STRIP * tile.blocks * types.b.bits
    if config.group_size != -1:
        bits += STRIP * groups * types.s.bits
    if types.b.zero_point:
        bits += STRIP * groups * types.c.bits
    return tile.strips * bits // 8


def unserved(config: KernelConfig, problem: Problem) -> str | None:
    """Return why a kernel does not serve a problem; None if it does.

    n and k must be multiples of 16; the packed weights are padded to blocks of 64.
    """
    if problem.m < 1:
        return f"m must be at least 1 (got {problem.m})"
    for name, value in (("n", problem.n), ("k", problem.k)):
        if value < 16 or value % 16:
            return f"{name} must be a positive multiple of 16 (got {value})"
    if problem.types.a == S8 and problem.group_size == -1 and problem.k > _S8_MAX_K:
        return (
            f"k must be at most {_S8_MAX_K} with s8 activations and channel scales: sums have 32 bits "
            f"(got {problem.k})"
        )
    if problem.types != config.types:
        return f"types are {config.types}, the problem's {problem.types}"
    if problem.group_size != config.group_size:
        return f"group_size is {config.group_size}, the problem's {problem.group_size}"
    if problem.moe != config.indexed:
        return "is for MoE layers" if config.indexed else "is for dense layers"
    return None
