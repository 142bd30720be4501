"""Whether a catalog's tiles and rules make sense together; each function answers in words, or None."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from ..arch import Arch, parse, supported
from ..config import KernelConfig
from ..families import fewest_stages, illegal
from .coverage import first_gap, unreachable
from .entry import Catalog, Shape
from .rule import ANY, Rule

_CAPABILITIES = tuple(parse(text).capability for text in supported())
# A rule holds for a capability with and without the suffix `a`: only what needs no suffix shadows others.
_TARGETS = tuple(Arch(*one, suffix) for one in _CAPABILITIES for suffix in ("", *"a" * (one >= (9, 0))))


def wrong_tile(catalog: Catalog) -> str | None:
    """Return which tile is legal for no format on any target, and why."""
    for shape in catalog.shapes:
        why: str | None = None
        for config in (config for target in _TARGETS for config in _configs(catalog, shape, target)):
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

    @cache
    def legal(name: str, target: tuple[int, int]) -> bool:
        return _legal_for_all(catalog, catalog.by_name[name], Arch(*target))

    targets = [one for one in _CAPABILITIES if any(legal(name, one) for name in catalog.by_name)]
    dead = unreachable(catalog.rules, targets, legal)
    if dead:
        return dead[
            0
        ], f"({_words(catalog.rules[dead[0]])}) never wins: rules before it always do; move or drop it"
    gap = first_gap(catalog.rules, targets, legal)
    if gap:
        return len(catalog.rules) - 1, f"is the last, and no rule serves {gap}; add a rule for them"
    return None


def _words(rule: Rule) -> str:
    return f"{rule.describe()} -> {rule.tile}"


def _configs(catalog: Catalog, shape: Shape, target: Arch) -> list[KernelConfig]:
    """Return the shape as a kernel for each format, with the shallowest pipeline: the last to be illegal."""
    stages = min(shape.tile.stages, fewest_stages(shape.family))
    shallow = replace(shape, tile=replace(shape.tile, stages=stages))
    return [
        shallow.kernel(types, group_size, shape.grouped, target)
        for one in catalog.formats
        for types in one.types()
        for group_size in one.group_sizes
    ]


def _legal_for_all(catalog: Catalog, shape: Shape, target: Arch) -> bool:
    return all(illegal(config) is None for config in _configs(catalog, shape, target))
