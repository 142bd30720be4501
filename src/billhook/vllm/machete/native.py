"""The documented schedules and heuristics, as kernels and rules of our own.

A schedule's tile and cluster choose a Machete kernel; the rest of its name (warp-specialised TMA mainloop,
cooperative epilogue, stream-K) describes every dense kernel of the family. A heuristic becomes rules of the
catalog, before those that it says nothing about: MoE layers, and GPU targets without wgmma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ... import catalog as native
from ...arch import Arch
from ...catalog import Catalog, Shape, deepest
from ...config import GemmTypes, KernelConfig, Tile
from ...errors import ConfigError, InputError
from ...families import machete
from ..heuristic import Comparison, Rule, Tiling, unique_tilings
from ..release import load_release
from ..rule_file import DEFAULT, load_rules
from .plan import load_catalog
from .types import generate_terse_sch_sig

ARCH = Arch(9, 0, "a")  # where wgmma is
NATIVE = "native"
_PREFIX = "machete-"
_DEEPEST = 8


@cache
def schedules() -> dict[str, Tiling]:
    """Return the documented schedules by name, such as `128x128_2x1x1_TmaMI__TmaCoop_streamK`, in order."""
    known = load_catalog()
    return {generate_terse_sch_sig(known.schedule(tiling)): tiling for tiling in unique_tilings(load_rules())}


def schedule_kernel(tiling: Tiling, types: GemmTypes, group_size: int) -> tuple[KernelConfig, str | None]:
    """Return the kernel that a schedule means for a format, and why it cannot exist or None.

    Args:
        tiling: The schedule's tile and cluster.
        types: Element types.
        group_size: Weights along k that share one scale; -1 for channel scales.
    """
    tried = [deepest(shape.kernel(types, group_size, False, ARCH)) for shape in _shapes(tiling)]
    return next((one for one in tried if one[1] is None), tried[0])


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
        ConfigError: A rule compares with `!=`, or chooses a cluster that no kernel has.
    """
    base = native.load()
    shapes = {shape.name: shape for tiling in unique_tilings(rules) for shape in _shapes(tiling)}
    listed = [shape for shape in base.shapes if shape.name not in shapes]
    first = [one for rule in rules for one in _translate(rule)]
    return Catalog(base.formats, (*shapes.values(), *listed), (*first, *base.rules), name)


def _shapes(tiling: Tiling) -> list[Shape]:
    """Return the tiles that a schedule may mean: it leaves tile_k and the pipeline's depth open."""
    (tile_n, tile_m), cluster = tiling.tile_mn, tiling.cluster_mnk
    if cluster[1:] != (1, 1):
        raise ConfigError(
            f"schedule {tiling}: kernels have clusters along the first mode alone, such as 2x1x1"
        )
    # 256 tokens x 128 features of k would leave room for two stages.
    tile_ks = (64, 128) if tile_m > 128 else (128, 64)
    return [Shape(machete.FAMILY, Tile(tile_m, tile_n, tile_k, _DEEPEST, cluster[0])) for tile_k in tile_ks]


def _translate(rule: Rule) -> Iterator[native.Rule]:
    """Yield a rule in the catalog's form for each tile that its schedule may mean; none if it never holds."""
    bounds = {name: _bounds(rule, name) for name in ("M", "N", "K")}
    if any(one.above >= one.max for one in bounds.values()):
        return
    for shape in _shapes(rule.tiling):
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
