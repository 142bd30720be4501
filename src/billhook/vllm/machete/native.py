"""Heuristics over the documented schedules as rules of our own.

They stand before the catalog's rules for what they say nothing about: MoE layers, and GPU targets without
wgmma. Whether tiles are split is no rule's choice but each call's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ... import catalog as native
from ...catalog import Catalog, Origin, Shape, deepest
from ...errors import ConfigError, InputError
from ..heuristic import Comparison, Rule, Tiling, unique_tilings
from ..release import load_release
from ..rule_file import DEFAULT, load_rules
from .schedules import ARCH, illegal, shapes, tiling_schedule

NATIVE = "native"
_PREFIX = "machete-"


def find_catalog(rules: str | Path) -> Catalog:
    """Return the catalog with the rules that have a name, or that a file holds.

    Args:
        rules: "native"; "machete-RELEASE" (such as machete-0.20) for the heuristic of a vLLM release; or
            a rule file in the form of `rule_file`.

    Raises:
        InputError: No such release.
        ConfigError: The file cannot be read or makes no sense, or the catalog has no kernel for what it uses.
    """
    if rules == NATIVE:
        return native.load()
    if isinstance(rules, str) and rules.startswith(_PREFIX):
        load_release(rules.removeprefix(_PREFIX))  # all releases have the same heuristic
        return documented_catalog(tuple(load_rules(DEFAULT)), rules)
    path = Path(rules)
    if not path.is_file():
        raise InputError(f"rules are native, machete-0.20 or another vLLM release, or a file (got {rules})")
    return documented_catalog(tuple(load_rules(path)), path.name)


@cache
def documented_catalog(rules: Sequence[Rule], name: str) -> Catalog:
    """Return the installed catalog with a schedule heuristic before its own rules.

    Args:
        rules: The heuristic.
        name: What messages call it.

    Raises:
        ConfigError: A rule compares with `!=`, or chooses what no kernel has.
    """
    base = native.load()
    meant = {tiling: _shapes(tiling, base) for tiling in unique_tilings(rules)}
    found = {shape.name: shape for tiling in meant for shape in meant[tiling]}
    listed = [shape for shape in base.shapes if shape.name not in found]
    first = [
        (one, Origin(name, number))
        for number, rule in enumerate(rules, 1)
        for one in _translate(rule, meant[rule.tiling])
    ]
    ours = zip(base.rules, base.origins, strict=True)
    translated, origins = zip(*first, *ours, strict=True)
    return Catalog(base.formats, (*found.values(), *listed), translated, origins, base.times)


def _shapes(tiling: Tiling, base: Catalog) -> list[Shape]:
    """Return the tiles that a rule may mean, of which some is legal for some format."""
    schedule = tiling_schedule(tiling)
    why_not = illegal(schedule)
    if why_not is not None:
        raise ConfigError(f"schedule {tiling}: {why_not}")
    formats = [(types, size) for one in base.formats for types in one.types() for size in one.group_sizes]
    found = shapes(schedule)
    tried = (deepest(shape.kernel(*one, False, ARCH))[1] for shape in found for one in formats)
    why_not = next(tried)
    if why_not is not None and None not in tried:
        raise ConfigError(f"schedule {tiling} has no kernel: {why_not}")
    return found


def _translate(rule: Rule, meant: Sequence[Shape]) -> Iterator[native.Rule]:
    """Yield a rule in the catalog's form for each tile that it may mean; none if it never holds."""
    bounds = {name: _bounds(rule, name) for name in ("M", "N", "K")}
    if any(one.above >= one.max for one in bounds.values()):
        return
    for shape in meant:
        yield native.Rule(
            tile=shape.name,
            rows=bounds["M"],
            n=bounds["N"],
            k=bounds["K"],
            moe=False,
            arch=(f"{ARCH.major}.{ARCH.minor}",),
        )


def _bounds(rule: Rule, variable: str) -> native.Bounds:
    """Return the sizes that satisfy every comparison of a variable."""
    edges = [_edges(one, rule) for one in rule.comparisons if one.variable == variable]
    return native.Bounds(max([0, *(low for low, _ in edges)]), min([math.inf, *(high for _, high in edges)]))


def _edges(one: Comparison, rule: Rule) -> tuple[float, float]:
    if one.op == "!=":
        raise ConfigError(f"rule ({rule}): {one} is no interval; write two rules, with < and with >")
    low = {">": one.value, ">=": one.value - 1, "==": one.value - 1}.get(one.op, 0)
    high = {"<": one.value - 1, "<=": one.value, "==": one.value}.get(one.op, math.inf)
    return low, high
