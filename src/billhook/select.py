"""Choose the kernel that serves a problem on a GPU target, and tell why.

The catalog's rules are tried in order; the first that matches and whose tile is legal on the target
wins. Nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from .arch import Arch
from .catalog import Catalog, Origin, Shape, deepest, last_m, load
from .config import GemmTypes, KernelConfig, Problem, Tile
from .errors import InputError, UnsupportedError
from .families import unserved


@dataclass(frozen=True)
class Candidate:
    """A kernel of the catalog, considered for one problem.

    Args:
        config: The kernel; with the shallowest pipeline tried if no depth is legal.
        why_not: Why it was not taken, in words with the value.
    """

    config: KernelConfig
    why_not: str


@dataclass(frozen=True)
class Choice:
    """The kernel that serves a problem.

    Args:
        problem: What was asked.
        arch: The GPU target.
        config: The kernel.
        reason: The rule that chose it, in words.
        catalog: Where it was chosen from.
        origin: Where that rule was read.
    """

    problem: Problem
    arch: Arch
    config: KernelConfig
    reason: str
    catalog: Catalog
    origin: Origin

    @property
    def rejected(self) -> list[Candidate]:
        """Every other tile of the catalog, in catalog order, and why it was not taken."""
        return [
            Candidate(config, why or _outranked(config, self))
            for config, why in candidates(self.problem, self.arch, self.catalog)
            if config != self.config
        ]


@dataclass(frozen=True)
class Span:
    """Consecutive row counts that one kernel serves.

    Args:
        first: Smallest m.
        last: Largest m.
        choice: The kernel and the reason.
    """

    first: int
    last: int
    choice: Choice


def candidates(
    problem: Problem, arch: Arch, catalog: Catalog | None = None
) -> list[tuple[KernelConfig, str | None]]:
    """Return every tile of the catalog as a kernel for this problem, with why it cannot serve it or None.

    Args:
        problem: What is asked.
        arch: The GPU target.
        catalog: The installed one if None.
    """
    found = []
    for shape in (catalog or load()).shapes:
        config, why = _kernel(shape, problem.types, problem.group_size, problem.moe, arch)
        found.append((config, why or unserved(config, problem)))
    return found


def select(problem: Problem, arch: Arch, catalog: Catalog | None = None) -> Choice:
    """Choose the kernel for a problem.

    Args:
        problem: What is asked.
        arch: The GPU target.
        catalog: The installed one if None.

    Raises:
        InputError: m, num_experts or top_k make no sense.
        UnsupportedError: No kernel serves the problem on this target; the message says why.
    """
    catalog = catalog or load()
    _check(problem, catalog)
    passed: list[tuple[Origin, str, str]] = []
    for rule, origin in zip(catalog.rules, catalog.origins, strict=True):
        if not rule.matches(problem, arch.capability):
            continue
        shape = catalog.by_name[rule.tile]
        config, why = _kernel(shape, problem.types, problem.group_size, problem.moe, arch)
        if why is not None:
            passed.append((origin, rule.tile, why))
            continue
        why = unserved(config, problem)
        if why is not None:
            raise UnsupportedError(f"no kernel serves {describe(problem)}: {why}")
        reason = "; ".join(
            [
                f"{origin} ({rule.describe()})",
                *_tell_passed(passed, origin),
                *_shallower(config, shape.tile),
            ]
        )
        return Choice(problem, arch, config, reason, catalog, origin)
    reasons = dict.fromkeys(why for _, _, why in passed)
    raise UnsupportedError(
        f"no kernel serves {describe(problem)} on {arch}: {'; '.join(reasons) or 'no rule matches'}"
    )


def _tell_passed(passed: Iterable[tuple[Origin, str, str]], winner: Origin) -> list[str]:
    """Tell which rules matched but want tiles that cannot be; those with one reason together."""
    reasons: dict[str, dict[str, str]] = {}
    for origin, tile, why in passed:
        reasons.setdefault(why, {})[origin.beside(winner)] = tile
    told = []
    for why, tiles in reasons.items():
        (_, tile), *others = tiles.items()
        told.append(f"{', '.join(tiles)} {'want other tiles' if others else f'wants {tile}'}: {why}")
    return told


def spans(problem: Problem, last: int, arch: Arch, catalog: Catalog | None = None) -> list[Span]:
    """Return which kernel serves each m from 1 to `last`: few spans, in order, without a gap.

    Args:
        problem: The problem; its m is not looked at.
        last: Largest m.
        arch: The GPU target.
        catalog: The installed one if None.

    Raises:
        InputError: `last` is less than 1, or the problem makes no sense.
        UnsupportedError: Some m is served by no kernel.
    """
    if last < 1:
        raise InputError(f"the largest m must be at least 1 (got {last})")
    catalog = catalog or load()
    _check(replace(problem, m=1), catalog)
    starts = sorted({1, *_switches(problem, last, catalog)})
    found: list[Span] = []
    for first, next_first in zip(starts, [*starts[1:], last + 1], strict=True):
        choice = select(replace(problem, m=first), arch, catalog)
        if found and found[-1].choice.config == choice.config and found[-1].choice.reason == choice.reason:
            found[-1] = replace(found[-1], last=next_first - 1)
        else:
            found.append(Span(first, next_first - 1, choice))
    return found


def _switches(problem: Problem, last: int, catalog: Catalog) -> Iterator[int]:
    """Yield each m at which some rule begins or ceases to match."""
    for rule in catalog.rules:
        for rows in (rule.rows.above, rule.rows.max):
            first = last_m(rows, problem) + 1
            if 1 < first <= last:
                yield int(first)


def _check(problem: Problem, catalog: Catalog) -> None:
    if problem.m < 1:
        raise InputError(f"m must be at least 1 (got {problem.m})")
    if problem.num_experts < 0:
        raise InputError(f"num_experts must be 0 (dense) or more (got {problem.num_experts})")
    if problem.moe and not 1 <= problem.top_k <= problem.num_experts:
        raise InputError(f"top_k must be 1 to num_experts = {problem.num_experts} (got {problem.top_k})")
    if not problem.moe and problem.top_k:
        raise InputError(f"top_k must be 0 for a dense layer (got {problem.top_k}); give num_experts too")
    formats = [one for one in catalog.formats if problem.types in one.types()]
    if not formats:
        every = [types for one in catalog.formats for types in one.types()]
        known = ", ".join(map(str, [types for types in every if types.b == problem.types.b] or every))
        raise UnsupportedError(
            f"no kernel family serves the types {problem.types} (A_B_scales_D); served: {known}"
        )
    groups = [group for one in formats for group in one.group_sizes]
    if problem.group_size not in groups:
        raise UnsupportedError(
            f"group_size must be one of {', '.join(map(str, groups))} for {problem.types.b} weights "
            f"(got {problem.group_size}; -1 is one scale per output channel)"
        )


@cache
def _kernel(
    shape: Shape, types: GemmTypes, group_size: int, indexed: bool, arch: Arch
) -> tuple[KernelConfig, str | None]:
    return deepest(shape.kernel(types, group_size, indexed, arch))


def describe(problem: Problem) -> str:
    """Return a problem in words."""
    words = [f"m={problem.m} n={problem.n} k={problem.k}"]
    if problem.moe:
        rows = f"{problem.rows_per_expert:g} rows each"
        words.append(f"{problem.num_experts} experts (top_k {problem.top_k}, {rows})")
    return ", ".join([*words, str(problem.types), f"group_size {problem.group_size}"])


def _shallower(config: KernelConfig, tile: Tile) -> list[str]:
    if config.tile.stages == tile.stages:
        return []
    return [f"{config.tile.stages} stages, since {tile.stages} do not fit in shared memory"]


def _outranked(config: KernelConfig, choice: Choice) -> str:
    """Return why a kernel that could serve the problem was not chosen."""
    name = Shape.of(config).name
    rules = zip(choice.catalog.rules, choice.catalog.origins, strict=True)
    naming = [(origin.beside(choice.origin), rule) for rule, origin in rules if rule.tile == name]
    for told, rule in naming:
        if rule.matches(choice.problem, choice.arch.capability):
            return f"could serve; {told} names it, but an earlier rule won"
    wanted = ", ".join(f"{told} ({rule.describe()})" for told, rule in naming)
    return f"could serve; named only by {wanted}" if wanted else "could serve; no rule names it"
