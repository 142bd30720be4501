"""The documented schedules as kernels of our own: what a field selects, which exist, why others do not.

tile_shape_mn      features and tokens of a tile; the deepest stages, and as many, as fit
cluster_shape_mnk  CTAs along features that fetch activations for each other
kernel_schedule    cooperative: warpgroups share each tile; pingpong: they take whole tiles in turns
epilogue_schedule  who stores a tile, through shared memory: all warpgroups together, or one alone
tile_scheduler     stream-K: CTAs may share tiles that do not fill a wave; an argument of each launch

Source: CUTLASS 4.2. Its examples/49_hopper_gemm_with_collective_builder pairs mainloops with epilogues so.
Its pingpong kernels refuse stream-K (gemm/kernel/sm90_gemm_tma_warpspecialized_pingpong.hpp); ours do not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

from ...arch import Arch
from ...catalog import Shape, deepest
from ...config import GemmTypes, KernelConfig, Tile
from ...families import machete
from ..heuristic import Tiling, unique_tilings
from ..rule_file import load_rules
from .cutlass import EpilogueScheduleType as Epilogue
from .cutlass import MixedInputKernelScheduleType as Kernel
from .cutlass import TileSchedulerType
from .plan import load_catalog
from .types import ScheduleConfig, generate_terse_sch_sig

ARCH = Arch(9, 0, "a")  # where wgmma is
_DEEPEST = 8
_EPILOGUES = {  # of the warpgroups that a mainloop leaves a tile's sums with
    Kernel.TmaWarpSpecializedCooperative: Epilogue.TmaWarpSpecializedCooperative,
    Kernel.TmaWarpSpecializedPingpong: Epilogue.TmaWarpSpecialized,
}


@cache
def schedules() -> dict[str, ScheduleConfig]:
    """Return schedules of the documented tiles by name: the documented ones, then those of every other pair.

    A name is such as `128x128_2x1x1_TmaMI__TmaCoop_streamK`. Not all have kernels: `schedule_kernel` knows.
    """
    documented = [load_catalog().schedule(tiling) for tiling in unique_tilings(load_rules())]
    pairs = product(_EPILOGUES.items(), TileSchedulerType)
    found = [
        replace(one, kernel_schedule=kernel, epilogue_schedule=epilogue, tile_scheduler=scheduler)
        for (kernel, epilogue), scheduler in pairs
        for one in documented
    ]
    return {generate_terse_sch_sig(one): one for one in found}


def tiling_schedule(tiling: Tiling) -> ScheduleConfig:
    """Return the schedule that a rule means: the documented one, unless it asks for pingpong."""
    documented = load_catalog().schedule(tiling)
    if not tiling.pingpong:
        return documented
    kernel = Kernel.TmaWarpSpecializedPingpong
    return replace(documented, kernel_schedule=kernel, epilogue_schedule=_EPILOGUES[kernel])


def illegal(schedule: ScheduleConfig) -> str | None:
    """Return why no kernel computes by a schedule, in words with the value; None if some may.

    What depends on types and tile, `families.illegal` knows.
    """
    kernel, epilogue = schedule.kernel_schedule, schedule.epilogue_schedule
    if kernel not in _EPILOGUES:
        known = " or ".join(_word(one) for one in _EPILOGUES)
        return (
            f"the kernel schedule must be {known}: a single warpgroup would not hide dequantization behind "
            f"the tensor cores (got {_word(kernel)})"
        )
    if epilogue is Epilogue.NoSmemWarpSpecialized:
        return f"outputs pass through shared memory, to be stored in whole rows (got {_word(epilogue)})"
    if epilogue is not _EPILOGUES[kernel]:
        who = "all warpgroups store a tile together"
        if kernel is Kernel.TmaWarpSpecializedPingpong:
            who = "one warpgroup stores a tile while the other multiplies"
        wanted = _word(_EPILOGUES[kernel])
        return f"the epilogue schedule of {_word(kernel)} is {wanted}: {who} (got {_word(epilogue)})"
    if schedule.cluster_shape_mnk[1:] != (1, 1):
        got = "x".join(map(str, schedule.cluster_shape_mnk))
        return f"kernels have clusters along the first mode alone, such as 2x1x1 (got {got})"
    return None


def shapes(schedule: ScheduleConfig) -> list[Shape]:
    """Return the tiles that a legal schedule may mean: it leaves tile_k and the pipeline's depth open."""
    (tile_n, tile_m), cluster = schedule.tile_shape_mn, schedule.cluster_shape_mnk[0]
    pingpong = schedule.kernel_schedule is Kernel.TmaWarpSpecializedPingpong
    # 256 tokens x 128 features of k would leave room for two stages.
    tile_ks = (64, 128) if tile_m > 128 else (128, 64)
    return [
        Shape(machete.FAMILY, Tile(tile_m, tile_n, tile_k, _DEEPEST, cluster, pingpong)) for tile_k in tile_ks
    ]


def schedule_kernel(
    schedule: ScheduleConfig, types: GemmTypes, group_size: int
) -> tuple[KernelConfig, str | None]:
    """Return the kernel that a schedule means for a format, and why it cannot exist or None.

    Args:
        schedule: Its tile scheduler does not matter: `splits`.
        types: Element types.
        group_size: Weights along k that share one scale; -1 for channel scales.
    """
    tried = [deepest(shape.kernel(types, group_size, False, ARCH)) for shape in shapes(schedule)]
    deep = max(tried, key=lambda one: one[0].tile.tile_k)  # what is wrong with a shallow one may be its depth
    config, why_not = next((one for one in tried if one[1] is None), deep)
    return config, illegal(schedule) or why_not


def splits(schedule: ScheduleConfig) -> bool:
    """Return whether CTAs may share an output tile: `split_k` of a call."""
    return schedule.tile_scheduler is TileSchedulerType.StreamK


def _word(tag: Kernel | Epilogue) -> str:
    return str(tag.value).rpartition("::")[2]
