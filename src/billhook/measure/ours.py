"""Billhook's own kernels as contestants: the one that dispatch chooses, or a given tile."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..arch import Arch
from ..build import Cache, cache_folder, compile_units, kernel_unit
from ..build.compile import default_jobs
from ..catalog import Shape, deepest, load
from ..config import KernelConfig, Problem, Tile
from ..errors import InputError, UnsupportedError
from ..families import FAMILIES, MULTIPROCESSORS, illegal, marlin, unserved
from ..select import candidates, select
from .contestant import Bind, Launch
from .inputs import Inputs, Weights
from .rows import OURS, TILE
from .workload import Workload

if TYPE_CHECKING:
    import torch

    from ..ops import PackedWeight


STAGES = 4  # of a tile that the catalog does not list


class Packing:
    """The packed copies of one layer at a time, shared by all of our contestants."""

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._copies: list[PackedWeight] = []

    def copies(self, weights: Weights, count: int) -> list[PackedWeight]:
        """Return `count` packed copies of a layer's weights."""
        if self._weights is not weights:
            self._weights, self._copies = weights, [pack(weights)]
        while len(self._copies) < count:
            self._copies.append(self._copies[0].clone())
        return self._copies[:count]


def pack(weights: Weights) -> PackedWeight:
    """Return a layer's weights as our kernels read them."""
    from ..ops import pack_weight

    layer = weights.workload
    parts = (weights.codes, weights.scales, weights.zeros, weights.channel_scales)
    codes, scales, zeros, channels = (one if layer.moe or one is None else one[0] for one in parts)
    return pack_weight(
        codes,
        scales,
        layer.group_size,
        format=layer.held.name,
        zeros=zeros,
        global_scales=weights.global_scales,
        channel_scales=channels,
    )


class Ours:
    """Billhook.

    Args:
        arch: The GPU target.
        packing: Shared packed weights.
        shape: A fixed tile of a family; None for what dispatch chooses.
        multiprocessors: The GPU's, which dispatch chooses for.
    """

    def __init__(
        self,
        arch: Arch,
        packing: Packing,
        shape: Shape | None = None,
        *,
        multiprocessors: int = MULTIPROCESSORS,
    ) -> None:
        self.arch, self.packing, self.shape = arch, packing, shape
        self.catalog = load().on(multiprocessors)
        self.name = OURS if shape is None else f"{TILE}{shape}"

    def version(self) -> str:
        """Return "": the record's commit says it."""
        return ""

    def config(self, problem: Problem) -> KernelConfig:
        """Return the kernel for a problem.

        Raises:
            UnsupportedError: None serves it; the message says why.
        """
        if self.shape is None:
            return select(problem, self.arch, self.catalog).config
        config = self.shape.kernel(problem.types, problem.group_size, problem.moe, self.arch)
        why = illegal(config) or unserved(config, problem)
        if why is not None:
            raise UnsupportedError(f"tile {self.shape.name} {why}")
        return config

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Pack the weights, once for all tiles."""
        copies = self.packing.copies(weights, max(case.copies for case in cases))

        def bind(inputs: Inputs) -> Launch:
            return _bind(copies, inputs, self.config(inputs.problem))

        return bind


def _bind(copies: Sequence[PackedWeight], inputs: Inputs, config: KernelConfig) -> Launch:
    from ..ops import gemm, moe_gemm, route

    if inputs.topk_ids is None:

        def call_dense(copy: int) -> torch.Tensor:
            return gemm(inputs.a, copies[copy], token_scales=inputs.token_scales, config=config.name)

        return Launch(call_dense, config.name)
    # As an engine would: every token has its experts, and both projections share the routing.
    routing = route(inputs.topk_ids, inputs.problem.num_experts, config.tile.tile_m, complete=True)

    def call_moe(copy: int) -> torch.Tensor:
        return moe_gemm(inputs.a, copies[copy], routing, token_scales=inputs.token_scales, config=config.name)

    return Launch(call_moe, config.name)


def parse_tile(text: str) -> tuple[Shape, bool]:
    """Read a tile such as `m16n128k256` or `machete-grouped-m256n128k64`, maybe with stages (`...k64s3`).

    Returns:
        The tile, and whether its stages were written; if not, they are those the catalog wants.

    Raises:
        InputError: It is not written like that.
    """
    match = re.fullmatch(
        r"(?:(?!grouped-)(\w+)-)?(grouped-)?m(\d+)n(\d+)k(\d+)(?:s(\d+))?(?:c(\d+))?(p)?", text
    )
    family = match[1] or marlin.FAMILY if match else ""
    if match is None or family not in FAMILIES:
        raise InputError(
            f"{text!r} is not a tile; write it like m16n128k256, m16n128k256s3 or machete-m64n128k128"
        )
    tile_m, tile_n, tile_k = (int(match[at]) for at in (3, 4, 5))
    tile = Tile(tile_m, tile_n, tile_k, int(match[6] or STAGES), int(match[7] or 1), match[8] is not None)
    shape = Shape(family, tile, grouped=match[2] is not None)
    return shape if match[6] else load().by_name.get(shape.name, shape), match[6] is not None


def fit_tile(shape: Shape, workload: Workload, arch: Arch) -> Shape:
    """Return the tile with as many of its stages as fit into shared memory.

    Args:
        shape: With the most stages wanted.
        workload: The layer that it is for.
        arch: The GPU target.
    """
    wanted = shape.kernel(workload.types, workload.group_size, workload.moe, arch)
    return Shape.of(deepest(wanted)[0])


def legal_tiles(workload: Workload, arch: Arch) -> list[Shape]:
    """Return every tile of the catalog that serves a layer."""
    found = candidates(workload.problem(workload.tokens[0]), arch)
    return [Shape.of(config) for config, why in found if why is None]


def compile_ahead(planned: Iterable[tuple[Workload, Sequence[Ours]]]) -> None:
    """Compile what will be measured, on all cores, so that nothing is compiled between measurements."""
    configs: dict[KernelConfig, None] = {}
    for workload, contestants in planned:
        for contestant, tokens in itertools.product(contestants, workload.tokens):
            with contextlib.suppress(UnsupportedError):  # its record will say why
                configs[contestant.config(workload.problem(tokens))] = None
    compile_units([kernel_unit(config) for config in configs], Cache(cache_folder()), default_jobs())
