"""Whether a catalog's tiles and rules make sense together; each function answers in words, or None."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from ..arch import Arch, parse, supported
from ..config import KernelConfig
from ..families import fewest_stages, illegal
from .coverage import Kind, first_gap, unreachable
from .entry import Catalog, Shape
from .rule import ANY, Rule

_CAPABILITIES = tuple(parse(text).capability for text in supported())
_TARGETS = tuple(Arch(*one, suffix) for one in _CAPABILITIES for suffix in ("", *"a" * (one >= (9, 0))))


def wrong_tile(catalog: Catalog) -> str | None:
    """Return which tile is legal for no format on any target, and why."""
    for shape in catalog.shapes:
        why: str | None = None
        for config in _configs(catalog, shape):
            why = illegal(config)
            if why is None:
                break
        if why is not None:
            return f"tile {shape.name} can exist nowhere: {why}"
    return None


def wrong_rule(catalog: Catalog) -> tuple[int, str] | None:
    """Return the position of the first rule that is wrong by itself, and what is wrong."""
    for position, rule in enumerate(catalog.rules):
        if rule.tile not in catalog.by_name:
            return position, f"names the unknown tile {rule.tile!r}; listed are {', '.join(catalog.by_name)}"
        for name, bounds in rule.bounds().items():
            if not 0 <= bounds.above < bounds.max:
                got = f"above = {bounds.above:g}, max = {bounds.max:g}"
                return position, f"must have 0 <= above < max for {name} (got {got})"
        if rule.moe is not False and (rule.n, rule.k) != (ANY, ANY):
            return (
                position,
                "has bounds on n or k: the projections of an expert share a routing; set moe = false",
            )
        if rule.activations not in (None, *_widths(catalog)):
            return position, f"is for {rule.activations}-bit activations, which no format has"
        if catalog.by_name[rule.tile].grouped and not rule.moe:
            return (
                position,
                f"names {rule.tile} for dense layers, which have no rows to group; set moe = true",
            )
        for target in rule.arch:
            if target not in supported():
                return position, f"names the unknown arch {target!r}; known are {', '.join(supported())}"
    return None


def wrong_order(catalog: Catalog) -> tuple[int, str] | None:
    """Return the position of the first rule that never wins, or of the last one if all leave a gap, and why.

    A rule shadows later ones only where its tile is legal for every format, so a later rule may be
    the fallback of an earlier one.
    """

    def served(kind: Kind, arch: Arch) -> bool:
        return any(_legal_for_all(catalog, shape, kind, arch) for shape in catalog.shapes)

    # A rule holds for a capability with and without the suffix `a`: only what needs no suffix shadows others,
    # unless nothing exists without it.
    archs: dict[Kind, Arch] = {}
    for moe, bits, arch in itertools.product((False, True), _widths(catalog), _TARGETS):
        kind = Kind(moe, bits, arch.capability)
        if kind not in archs and served(kind, arch):
            archs[kind] = arch

    @cache
    def legal(name: str, kind: Kind) -> bool:
        return _legal_for_all(catalog, catalog.by_name[name], kind, archs[kind])

    dead = unreachable(catalog.rules, archs, legal)
    if dead:
        return dead[
            0
        ], f"({_words(catalog.rules[dead[0]])}) never wins: rules before it always do; move or drop it"
    gap = first_gap(catalog.rules, archs, legal)
    if gap:
        return len(catalog.rules) - 1, f"is the last, and no rule serves {gap}; add a rule for them"
    return None


def _widths(catalog: Catalog) -> tuple[int, ...]:
    """Return the bits that activations have in some format, the most first."""
    return tuple(sorted({types.a.bits for one in catalog.formats for types in one.types()}, reverse=True))


def _words(rule: Rule) -> str:
    return f"{rule.describe()} -> {rule.tile}"


def _configs(catalog: Catalog, shape: Shape) -> Iterator[KernelConfig]:
    """Yield the shape as a kernel of every kind on every target."""
    for moe, bits, arch in itertools.product((False, True), _widths(catalog), _TARGETS):
        yield from _of_kind(catalog, shape, Kind(moe, bits, arch.capability), arch)


def _of_kind(catalog: Catalog, shape: Shape, kind: Kind, arch: Arch) -> Iterator[KernelConfig]:
    """Yield the shape as a kernel for each format, with the shallowest pipeline: the last to be illegal."""
    stages = min(shape.tile.stages, fewest_stages(shape.family))
    shallow = replace(shape, tile=replace(shape.tile, stages=stages))
    for one in catalog.formats:
        for types, group_size in itertools.product(one.types(), one.group_sizes):
            if types.a.bits == kind.activations:
                yield shallow.kernel(types, group_size, kind.moe, arch)


def _legal_for_all(catalog: Catalog, shape: Shape, kind: Kind, arch: Arch) -> bool:
    return all(illegal(config) is None for config in _of_kind(catalog, shape, kind, arch))
