"""Whether a catalog's tiles and rules make sense together; each function answers in words, or None."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from ..arch import Arch, parse, supported
from ..config import GemmTypes, KernelConfig
from ..dtypes import DType
from ..families import fewest_stages, illegal, tells_work
from .coverage import Kind, first_gap, unreachable
from .entry import Catalog, Shape
from .rule import ANY, Rule

_Format = tuple[GemmTypes, int]  # and group size
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
        wrong_tiles = _wrong_tiles(rule, catalog)
        if wrong_tiles:
            return position, wrong_tiles
        for name, bounds in rule.bounds().items():
            if not 0 <= bounds.above < bounds.max:
                got = f"above = {bounds.above:g}, max = {bounds.max:g}"
                return position, f"must have 0 <= above < max for {name} (got {got})"
        if rule.moe is not False and (rule.n, rule.k) != (ANY, ANY):
            return (
                position,
                "has bounds on n or k: the projections of an expert share a routing; set moe = false",
            )
        if not rule.moe and rule.experts != ANY:
            return position, "has bounds on experts, which only MoE layers have; set moe = true"
        wrong_types = _wrong_activations(rule, catalog) or _wrong_weights(rule.weights, catalog)
        if wrong_types:
            return position, wrong_types
        wrong_choice = _wrong_choice(rule, catalog)
        if wrong_choice:
            return position, wrong_choice
        for target in rule.arch:
            if target not in supported():
                return position, f"names the unknown arch {target!r}; known are {', '.join(supported())}"
    return None


def wrong_times(catalog: Catalog) -> tuple[int, str] | None:
    """Return the position of the first times that are wrong, and what is wrong."""
    used = {
        (tile, a.bits)
        for rule in catalog.rules
        for a in _activations(catalog)
        if rule.predicts and rule.takes(a)
        for tile in rule.tiles
    }
    seen: set[tuple[str, int, int | None]] = set()
    for position, one in enumerate(catalog.times):
        of = (one.tile, one.activations, one.weights)
        if one.tile not in catalog.by_name:
            listed = ", ".join(catalog.by_name)
            return position, f"are of the unknown tile {one.tile!r}; listed are {listed}"
        beside = "" if one.weights is None else f" beside {one.weights}-bit weights"
        what = f"are of {one.tile} under {one.activations}-bit activations{beside},"
        wrong_weights = _wrong_weights(one.weights, catalog)
        if wrong_weights:
            return position, wrong_weights
        if of in seen:
            return position, f"{what} as are others before; drop one"
        if of[:2] not in used:
            return position, f"{what} which no rule chooses among several tiles; drop them"
        seen.add(of)
        if not (0 <= one.launch < math.inf and 0 <= one.wave < math.inf and 0 < one.column < math.inf):
            got = f"launch = {one.launch:g}, column = {one.column:g}, wave = {one.wave:g}"
            return position, f"must be 0 or more, and column more than 0 (got {got})"
    return None


def wrong_order(catalog: Catalog) -> tuple[int, str] | None:
    """Return the position of the first rule that never wins, or of the last one if all leave a gap, and why.

    A rule shadows later ones only where its tile is legal for every format that the target has, so a later
    rule may be the fallback of an earlier one.
    """
    # A rule holds for a capability with and without the suffix `a`: what exists without it must be served
    # without it; what only the suffix adds makes kinds of its own.
    served: dict[Kind, list[_Format]] = {}
    for kind, formats in _kinds(catalog):
        elsewhere = served.get(kind._replace(suffix=""), ())
        found = [one for one in formats if one not in elsewhere and _is_served(catalog, kind, one)]
        if found:
            served[kind] = found

    @cache
    def legal(name: str, kind: Kind) -> frozenset[_Format]:
        shape = catalog.by_name[name]
        return frozenset(one for one in served[kind] if illegal(_kernel(shape, one, kind)) is None)

    def serves(rule: Rule, kind: Kind) -> bool:
        found: set[_Format] = set()
        for tile in rule.tiles:
            found |= legal(tile, kind)
        return found.issuperset(served[kind])

    dead = unreachable(catalog.rules, served, serves)
    if dead:
        return dead[
            0
        ], f"({_words(catalog.rules[dead[0]])}) never wins: rules before it always do; move or drop it"
    gap = first_gap(catalog.rules, served, serves)
    if gap:
        return len(catalog.rules) - 1, f"is the last, and no rule serves {gap}; add a rule for them"
    return None


def _activations(catalog: Catalog) -> tuple[DType, ...]:
    """Return the types that activations have in some format, in catalog order."""
    return tuple(dict.fromkeys(types.a for one in catalog.formats for types in one.types()))


def _weights(catalog: Catalog) -> tuple[int, ...]:
    """Return the bits that weights have in some format, in catalog order."""
    return tuple(dict.fromkeys(types.b.bits for one in catalog.formats for types in one.types()))


def _wrong_tiles(rule: Rule, catalog: Catalog) -> str | None:
    if not rule.tiles:
        return "lists no tile; name one, or several that have times"
    for position, tile in enumerate(rule.tiles):
        if tile not in catalog.by_name:
            return f"names the unknown tile {tile!r}; listed are {', '.join(catalog.by_name)}"
        if tile in rule.tiles[:position]:
            return f"names {tile} twice; drop one"
    return None


def _wrong_choice(rule: Rule, catalog: Catalog) -> str | None:
    """Return what is wrong with tiles that all exist."""
    if rule.predicts and rule.moe is not False:
        return "lists tiles to choose from by their times, which are of dense layers; set moe = false"
    for tile in rule.tiles:
        shape = catalog.by_name[tile]
        if shape.grouped and not rule.moe:
            return f"names {tile} for dense layers, which have no rows to group; set moe = true"
        if not rule.predicts:
            continue
        if not tells_work(shape.family):
            return f"lists {tile}, but times of the family {shape.family} cannot be predicted; drop it"
        for bits in dict.fromkeys(a.bits for a in _activations(catalog) if rule.takes(a)):
            if (tile, bits, None) not in catalog.times_of:
                return (
                    f"lists {tile}, which has no [[times]] under {bits}-bit activations; "
                    "add them (billhook bench --fit), or drop it"
                )
    return None


def _wrong_activations(rule: Rule, catalog: Catalog) -> str | None:
    known = _activations(catalog)
    names = [one.name for one in known]
    if isinstance(rule.activations, int) and rule.activations not in {one.bits for one in known}:
        return f"is for {rule.activations}-bit activations, which no format has; there are {', '.join(names)}"
    if rule.activations == ():
        return "lists no type of activations; leave `activations` out for all"
    if isinstance(rule.activations, tuple):
        for name in rule.activations:
            if name not in names:
                return f"names the unknown type of activations {name!r}; there are {', '.join(names)}"
    return None


def _wrong_weights(bits: int | None, catalog: Catalog) -> str | None:
    known = _weights(catalog)
    if bits in (None, *known):
        return None
    return f"is for {bits}-bit weights, which no format has; there are {', '.join(map(str, known))}"


def _words(rule: Rule) -> str:
    return f"{rule.describe()} -> {' or '.join(rule.tiles)}"


def _configs(catalog: Catalog, shape: Shape) -> Iterator[KernelConfig]:
    """Yield the shape as a kernel of every kind on every target."""
    for kind, formats in _kinds(catalog):
        yield from (_kernel(shape, one, kind) for one in formats)


def _kinds(catalog: Catalog) -> Iterator[tuple[Kind, Sequence[_Format]]]:
    """Yield every kind on every target, with its types and group sizes."""
    found: dict[tuple[DType, int], list[_Format]] = {}
    for one in catalog.formats:
        for types, group_size in itertools.product(one.types(), one.group_sizes):
            found.setdefault((types.a, types.b.bits), []).append((types, group_size))
    for moe, ((a, weights), formats), arch in itertools.product((False, True), found.items(), _TARGETS):
        yield Kind(moe, a, weights, arch.capability, arch.suffix), formats


def _is_served(catalog: Catalog, kind: Kind, one: _Format) -> bool:
    """Return whether some tile is legal for a format on a target."""
    return any(illegal(_kernel(shape, one, kind)) is None for shape in catalog.shapes)


def _kernel(shape: Shape, one: _Format, kind: Kind) -> KernelConfig:
    types, group_size = one
    return _shallow(shape).kernel(types, group_size, kind.moe, Arch(*kind.target, kind.suffix))


@cache
def _shallow(shape: Shape) -> Shape:
    """Return the shape with the shallowest pipeline: the last to be illegal."""
    stages = min(shape.tile.stages, fewest_stages(shape.family))
    return replace(shape, tile=replace(shape.tile, stages=stages))
