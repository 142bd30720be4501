"""The Machete family (warpgroup-level `wgmma`, SM90a): legality and resources.

What is computed here mirrors `cuda/billhook/kernel/machete.cuh`.
"""

from __future__ import annotations

from ..config import STRIP, KernelConfig
from ..dtypes import E2M1F, E4M3FN, U4B8, U8B128
from . import base

FAMILY = "machete"
FEWEST_STAGES = 2  # one to compute while the other is filled
STAGES_PER_CTA = 10  # fewer do not pay for a CTA more on a multiprocessor (docs/decisions/machete-kernel.md)
PARTIALS_PER_CTA = 1  # it begins in the middle of one tile at most; the part of its last stays in registers
CLUSTERS = (1, 2, 4)
_WARPGROUP = 128
_ALIGNMENT = 1024  # of a stage: what wgmma's 128-byte swizzle repeats after
_WAVES_BYTES = 64  # which tiles the CTA computes
_MOST_SCRATCH_TOKENS = {16: 144, 8: 112}  # by bits of activations: taken at once by the epilogue; else half
_SWIZZLED_BYTES = 128  # of a token's activations: what wgmma reads together
_MOST_SUMS = {2: 144, 3: 64, 4: 32}  # by consumers: registers of one for float32 sums; all else needs some 80
_MOST_PINGPONG_SUMS = 96  # beside what tells the consumers their turns

_HALVED_TILE_M = 256  # the last tiles may be of half as many tokens
_NARROW_WEIGHTS = (U4B8, U8B128, E4M3FN)  # that 8-bit activations meet
_PROMOTED_GROUP = 128  # inputs under one scale that 8-bit activations may have: what a block of them holds
_MOST_PROMOTED_SUMS = 48  # those of the group beside those of all


def consumers(config: KernelConfig) -> int:
    """Return the warpgroups of a CTA that multiply: one for each strip of features, as registers allow."""
    tile = config.tile
    return 2 if tile.pingpong or (tile.tile_n == 256 and tile.tile_m > 48) else tile.strips


def strips_each(config: KernelConfig) -> int:
    """Return the strips of 64 features that a consumer computes of its tile, alone or with the others."""
    return config.tile.strips // (1 if config.tile.pingpong else consumers(config))


def threads(config: KernelConfig) -> int:
    """Return the threads of one CTA: the consumers' and one producer warpgroup's."""
    return _WARPGROUP * (consumers(config) + 1)


def sums(config: KernelConfig) -> int:
    """Return the float32 sums that a thread of a consumer holds, which computes whole strips of features."""
    return strips_each(config) * STRIP * config.tile.tile_m // _WARPGROUP


def shared_memory(config: KernelConfig) -> int:
    """Return the dynamic shared memory of one CTA, bytes."""
    tile = config.tile
    stage = tile.tile_m * tile.tile_k * config.types.a.bits // 8 + base.weight_bytes_per_stage(config)
    stage = -(-stage // _ALIGNMENT) * _ALIGNMENT
    whole = tile.tile_m <= _MOST_SCRATCH_TOKENS[config.types.a.bits]
    tokens = tile.tile_m if whole else -(-tile.tile_m // 32) * 16
    scratch = tokens * STRIP * 2
    tables = (2 if config.indexed else 0) + (1 if config.types.a.bits == 8 else 0)
    lookup = tile.tile_m * 4 if config.indexed and not config.grouped else 0
    of_consumer = scratch + tables * tile.tile_m * 4
    rest = lookup + base.BARRIER_BYTES * max(1, len(boxes(config))) + _WAVES_BYTES
    return tile.stages * stage + consumers(config) * of_consumer + rest


def illegal(config: KernelConfig) -> str | None:
    """Return why this kernel cannot exist, in words with the value; None if it can."""
    tile = config.tile
    if (config.arch.capability, config.arch.suffix) != ((9, 0), "a"):
        return f"needs the target 9.0a, where wgmma is (got {config.arch})"
    folds = base.folds(config.types)
    promotes = config.types.a.bits == 8 and config.group_size == _PROMOTED_GROUP and not folds
    why = base.wrong_types(config, _NARROW_WEIGHTS, promotes or folds) or base.wrong_tile(
        config, largest_m=256, fewest_stages=FEWEST_STAGES
    )
    if why is not None:
        return why
    if tile.tile_n not in (128, 192, 256):
        return f"tile_n must be 128, 192 or 256 (got {tile.tile_n})"
    chunk = 8 * _SWIZZLED_BYTES // config.types.a.bits
    if tile.tile_k % chunk:
        return f"tile_k must be a multiple of {chunk} with {config.types.a} activations (got {tile.tile_k})"
    if tile.tile_m % 16:
        return f"tile_m must be a multiple of 16 (got {tile.tile_m})"
    if promotes and (tile.tile_n != 128 or tile.pingpong or sums(config) > _MOST_PROMOTED_SUMS):
        return (
            "sums of groups leave registers for a tile of 128 features x 96 tokens at most, "
            f"computed together (got {tile})"
        )
    most = _MOST_PINGPONG_SUMS if tile.pingpong else _MOST_SUMS[consumers(config)]
    if sums(config) > most:
        room = most * _WARPGROUP // (strips_each(config) * STRIP) // 16 * 16
        how = "alone" if tile.pingpong else "together"
        return f"tile_m must be at most {room} with tile_n {tile.tile_n}, computed {how} (got {tile.tile_m})"
    if tile.cluster not in CLUSTERS or tile.tile_m % (8 * tile.cluster):
        return f"cluster must be 1, 2 or 4 and divide tile_m / 8 = {tile.tile_m // 8} (got {tile.cluster})"
    if config.grouped and not config.indexed:
        return "rows are grouped for MoE layers only"
    if config.indexed and not config.grouped and tile.cluster > 1:
        return f"cluster must be 1 for MoE whose rows are looked up, not grouped (got {tile.cluster})"
    if config.types.a.bits == 8 and config.indexed and not config.grouped:
        return f"rows of MoE layers must be grouped with {config.types.a} activations, not looked up"
    return base.too_large(config, shared_memory(config))


def rounds_weights(config: KernelConfig) -> bool:
    """Return whether a weight's product with its scale is rounded to 16 bits before the MMA.

    So for all group scales, but a product of e2m1 and a scale of 8 bits is exact, and under 8-bit
    activations scales multiply sums, or the rounded product is what the format says a weight is.
    """
    return config.group_size != -1 and config.types.b != E2M1F and config.types.a.bits == 16


def boxes(config: KernelConfig) -> tuple[int, ...]:
    """Return the rows of A that come at once, by TMA: of a tile, and of half a tile where there are such."""
    if config.indexed and not config.grouped:
        return ()
    tile = config.tile
    rows = tile.tile_m // tile.cluster
    if tile.tile_m == _HALVED_TILE_M and tile.stages > FEWEST_STAGES:
        return (rows, rows // 2)
    return (rows,)
