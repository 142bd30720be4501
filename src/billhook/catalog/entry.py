"""The values that a catalog holds, and the kernel that one of its tiles becomes on a GPU target."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import msgspec

from ..config import GemmTypes, KernelConfig, Tile
from ..dtypes import dtype
from ..families import illegal
from .rule import Rule

MIN_STAGES = 2  # one to compute on while the other is filled


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight format and what it is multiplied with.

    Args:
        weight: Name of the weights' element type.
        activations: Names of the activations' element types; scales and output have the same.
        group_sizes: Weights along k that share a scale; -1 for channel scales.
    """

    weight: str
    activations: tuple[str, ...]
    group_sizes: tuple[int, ...]

    def types(self) -> list[GemmTypes]:
        """Return the element types, one entry per activation type."""
        return [GemmTypes(dtype(a), dtype(self.weight), dtype(a), dtype(a)) for a in self.activations]


class Catalog(msgspec.Struct, frozen=True, dict=True):
    """One kernel family's formats, tiles and rules.

    Args:
        family: The family's name.
        formats: In catalog order.
        tiles: With the deepest pipeline wanted, in catalog order.
        rules: In order of precedence.
        rules_file: Where the rules were read from, for messages.
    """

    family: str
    formats: tuple[Format, ...]
    tiles: tuple[Tile, ...]
    rules: tuple[Rule, ...]
    rules_file: str

    @cached_property
    def by_name(self) -> dict[str, Tile]:
        """Tiles by `tile_name`."""
        return {tile_name(tile): tile for tile in self.tiles}


def tile_name(tile: Tile) -> str:
    """Return a tile's name without its stages, as rules write it: `m16n128k256`."""
    return f"m{tile.tile_m}n{tile.tile_n}k{tile.tile_k}"


def deepest(config: KernelConfig) -> tuple[KernelConfig, str | None]:
    """Return the config with the deepest pipeline, at most its own, that is legal; else why none is.

    Returns:
        The legal config and None; or an illegal one (the shallowest, if depth matters) and why it is.
    """
    wanted, why_not_wanted = config, illegal(config)
    why = why_not_wanted
    while why is not None and config.tile.stages > MIN_STAGES:
        config = replace(config, tile=replace(config.tile, stages=config.tile.stages - 1))
        why = illegal(config)
    # what no depth changes is told of the config that was asked about
    return (wanted, why) if why == why_not_wanted else (config, why)
