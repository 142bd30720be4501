"""The values that a catalog holds, and the kernel that one of its tiles becomes on a GPU target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import msgspec

from ..arch import Arch
from ..config import GemmTypes, KernelConfig, Tile
from ..dtypes import DType, dtype
from ..errors import InputError
from ..families import MULTIPROCESSORS, fewest_stages, illegal, marlin
from ..weights import FORMATS, PackedFormat
from .rule import Rule
from .times import TileTimes

_MOST_MULTIPROCESSORS = 1024


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A weight format and what it is multiplied with.

    Args:
        weight: Name of the weights' element type.
        activations: Names of the activations' element types.
        group_sizes: Weights along k that share a scale; -1 for channel scales.
        scales: Name of the scales' element type; that of the output if left out.
        outputs: Names of the outputs' element types; that of the activations if left out.
    """

    weight: str
    activations: tuple[str, ...]
    group_sizes: tuple[int, ...]
    scales: str | None = None
    outputs: tuple[str, ...] = ()

    def types(self) -> list[GemmTypes]:
        """Return the element types, one entry per type of activations and outputs."""
        return [
            GemmTypes(dtype(a), dtype(self.weight), dtype(self.scales or c), dtype(c))
            for a in self.activations
            for c in self.outputs or (a,)
        ]


def all_formats() -> tuple[Format, ...]:
    """Return every format of `weights.FORMATS`, first with activations of 16 bits, then with those of 8."""
    wide = [_format(one, one.activations) for one in FORMATS.values() if one.activations]
    narrow = [
        _format(one, one.narrow_activations, one.outputs)
        for one in FORMATS.values()
        if one.narrow_activations
    ]
    return (*wide, *narrow)


def _format(one: PackedFormat, activations: tuple[DType, ...], outputs: tuple[DType, ...] = ()) -> Format:
    return Format(
        weight=one.weight.name,
        activations=tuple(a.name for a in activations),
        group_sizes=tuple(sorted(one.group_sizes)),
        scales=one.scale.name if one.scale else None,
        outputs=tuple(c.name for c in outputs),
    )


@dataclass(frozen=True)
class Shape:
    """A tile of one kernel family.

    Args:
        family: The family's name.
        tile: With the deepest pipeline wanted.
        grouped: Whether rows are grouped by expert before: for MoE layers only.
    """

    family: str
    tile: Tile
    grouped: bool = False

    @classmethod
    def of(cls, config: KernelConfig) -> Shape:
        """Return the shape of a kernel."""
        return cls(config.family, config.tile, config.grouped)

    @property
    def name(self) -> str:
        """As rules write it: `[FAMILY-][grouped-]m16n128k256[c2][p]`, no family for Marlin, no stages."""
        return str(self).replace(f"s{self.tile.stages}", "")

    def __str__(self) -> str:
        family = "" if self.family == marlin.FAMILY else f"{self.family}-"
        return f"{family}{'grouped-' if self.grouped else ''}{self.tile}"

    def kernel(self, types: GemmTypes, group_size: int, indexed: bool, arch: Arch) -> KernelConfig:
        """Return the shape as a kernel."""
        return KernelConfig(self.family, types, group_size, self.tile, indexed, arch, self.grouped)


class Origin(NamedTuple):
    """Where a rule was read, for messages.

    Args:
        file: What messages call the file.
        number: Of the rule in it, from 1.
    """

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file} rule {self.number}"

    def beside(self, other: Origin) -> str:
        """Return what to call it in a message that names another one before."""
        return f"rule {self.number}" if self.file == other.file else str(self)


class Catalog(msgspec.Struct, frozen=True, dict=True):
    """Formats, shapes and rules.

    Args:
        formats: In catalog order.
        shapes: In catalog order.
        rules: In order of precedence.
        origins: Where each rule was read.
        times: Of the tiles of rules that choose by predicted time.
        multiprocessors: Of the GPU that times are predicted for.
    """

    formats: tuple[Format, ...]
    shapes: tuple[Shape, ...]
    rules: tuple[Rule, ...]
    origins: tuple[Origin, ...]
    times: tuple[TileTimes, ...]
    multiprocessors: int = MULTIPROCESSORS

    def on(self, multiprocessors: int) -> Catalog:
        """Return the same catalog, which chooses tiles for a GPU of so many multiprocessors.

        Raises:
            InputError: There are no GPUs of so many.
        """
        if not 1 <= multiprocessors <= _MOST_MULTIPROCESSORS:
            raise InputError(
                f"a GPU has 1 to {_MOST_MULTIPROCESSORS} multiprocessors (got {multiprocessors}): an H100 "
                f"SXM {MULTIPROCESSORS}, an H100 PCIe 114"
            )
        return msgspec.structs.replace(self, multiprocessors=multiprocessors)

    @cached_property
    def by_name(self) -> dict[str, Shape]:
        """Shapes by name."""
        return {shape.name: shape for shape in self.shapes}

    def find_times(self, tile: str, types: GemmTypes) -> TileTimes:
        """Return the times of a tile under types: those of weights of as many bits, else those of any."""
        of_weights = self.times_of.get((tile, types.a.bits, types.b.bits))
        return of_weights or self.times_of[tile, types.a.bits, None]

    @cached_property
    def times_of(self) -> dict[tuple[str, int, int | None], TileTimes]:
        """Times by name of the tile, bits of the activations and of the weights; None: of any."""
        return {(one.tile, one.activations, one.weights): one for one in self.times}


def deepest(config: KernelConfig) -> tuple[KernelConfig, str | None]:
    """Return the config with the deepest pipeline, at most its own, that is legal; else why none is.

    Returns:
        The legal config and None; or an illegal one (the shallowest, if depth matters) and why it is.
    """
    wanted, why_not_wanted = config, illegal(config)
    why = why_not_wanted
    while why is not None and config.tile.stages > fewest_stages(config.family):
        config = replace(config, tile=replace(config.tile, stages=config.tile.stages - 1))
        why = illegal(config)
    # what no depth changes is told of the config that was asked about
    return (wanted, why) if why == why_not_wanted else (config, why)
