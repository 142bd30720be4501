"""Choose the kernel that serves a problem on a GPU target, and tell why.

The catalog's rules are tried in order; the first that matches and has a tile that is legal on the target
wins. Of several tiles it takes the one that is predicted to be the fastest. Nothing here needs a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from operator import attrgetter

from .arch import Arch
from .catalog import Catalog, Origin, Rule, Shape, deepest, last_m, load
from .config import GemmTypes, KernelConfig, Problem, Tile
from .errors import InputError, UnsupportedError
from .families import MULTIPROCESSORS, unserved, work_step


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
class Kept:
    """The kernels that a plan makes do with where rules list several tiles.

    Args:
        kernels: At least one of them is near enough to the fastest, whatever is asked.
        within: How much more than the least time is near enough, as a share of it.
    """

    kernels: frozenset[KernelConfig]
    within: float


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
    winner = _find_rule(problem, arch, catalog)
    _, times = next(winner.times_from(problem, problem.m))
    return winner.choice(winner.kernels[times.index(min(times))], problem)


@dataclass(frozen=True)
class _Winner:
    """The rule that wins for a problem, and for others that no rule tells from it.

    Args:
        rule: The rule.
        origin: Where it was read.
        kernels: Those of its tiles that are legal, at least one.
        passed: Why rules before it were not taken.
        arch: The GPU target.
        catalog: Where it was found.
    """

    rule: Rule
    origin: Origin
    kernels: tuple[KernelConfig, ...]
    passed: tuple[str, ...]
    arch: Arch
    catalog: Catalog

    def times_from(self, problem: Problem, last: int) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield what each kernel is predicted to take, and each m up to `last` from which that differs.

        Times are microseconds; a lone kernel has nothing to be compared with, and 0.
        """
        if len(self.kernels) == 1:
            yield problem.m, (0.0,)
            return
        times = [_predict(config, problem, self.catalog) for config in self.kernels]
        yield problem.m, tuple(times)
        steps = [work_step(config) for config in self.kernels]
        edges = {edge for step in steps for edge in range(-(-problem.m // step) * step, last, step)}
        for edge in sorted(edges):
            beyond = replace(problem, m=edge + 1)
            for index, step in enumerate(steps):
                if edge % step == 0:
                    times[index] = _predict(self.kernels[index], beyond, self.catalog)
            yield edge + 1, tuple(times)

    def choice(self, config: KernelConfig, problem: Problem, within: float = 0.0) -> Choice:
        """Return one of its kernels as what serves a problem, within a share of the least time."""
        words = f"{self.origin} ({self.rule.describe()})"
        if self.rule.predicts:
            words += f": {_count(len(self.kernels), len(self.rule.tiles), within)}"
            if self.catalog.multiprocessors != MULTIPROCESSORS:
                words += f" for {self.catalog.multiprocessors} multiprocessors"
        wanted = self.catalog.by_name[Shape.of(config).name].tile
        reason = "; ".join([words, *self.passed, *_shallower(config, wanted)])
        return Choice(problem, self.arch, config, reason, self.catalog, self.origin)


@dataclass(frozen=True)
class Stretch:
    """Consecutive row counts in which one rule wins and no predicted time changes.

    Args:
        first: Smallest m.
        last: Largest m.
        winner: The rule.
        times: Of the rule's kernels, in their order, microseconds; a lone kernel's is 0.
    """

    first: int
    last: int
    winner: _Winner
    times: tuple[float, ...]

    def near(self, within: float) -> tuple[KernelConfig, ...]:
        """Return the kernels that are predicted to take at most `within` (a share) more than the fastest."""
        most = (1 + within) * min(self.times)
        kernels = self.winner.kernels
        return tuple(kernel for kernel, time in zip(kernels, self.times, strict=True) if time <= most)


def _count(legal: int, listed: int, within: float) -> str:
    if legal == 1:
        return "the only one of its tiles that can be" if listed > 1 else "its only tile"
    near = f"within {100 * within:g}% of " if within else ""
    return f"{near}the fastest of {legal} tiles, as predicted"


def _find_rule(problem: Problem, arch: Arch, catalog: Catalog) -> _Winner:
    """Return the first rule that matches and has a legal tile.

    Raises:
        UnsupportedError: No kernel serves the problem on this target; the message says why.
    """
    passed: list[tuple[Origin, str, str]] = []
    for rule, origin in zip(catalog.rules, catalog.origins, strict=True):
        if not rule.matches(problem, arch.capability):
            continue
        kernels: list[KernelConfig] = []
        refused: list[str] = []
        for tile in rule.tiles:
            shape = catalog.by_name[tile]
            config, why = _kernel(shape, problem.types, problem.group_size, problem.moe, arch)
            if why is None:
                kernels.append(config)
            else:
                refused.append(why)
        if not kernels:
            wanted = f"one of {len(rule.tiles)} tiles" if len(rule.tiles) > 1 else rule.tiles[0]
            passed.append((origin, wanted, refused[0]))
            continue
        why = unserved(kernels[0], problem)  # which asks nothing of the tile
        if why is not None:
            raise UnsupportedError(f"no kernel serves {describe(problem)}: {why}")
        words = tuple(_tell_passed(passed, origin))
        return _Winner(rule, origin, tuple(kernels), words, arch, catalog)
    reasons = dict.fromkeys(why for _, _, why in passed)
    raise UnsupportedError(
        f"no kernel serves {describe(problem)} on {arch}: {'; '.join(reasons) or 'no rule matches'}"
    )


def _tell_passed(passed: Iterable[tuple[Origin, str, str]], winner: Origin) -> list[str]:
    """Tell which rules matched but want tiles that cannot be; those with one reason together."""
    reasons: dict[str, dict[str, str]] = {}
    for origin, wanted, why in passed:
        reasons.setdefault(why, {})[origin.beside(winner)] = wanted
    told = []
    for why, rules in reasons.items():
        (_, wanted), *others = rules.items()
        told.append(f"{', '.join(rules)} {'want other tiles' if others else f'wants {wanted}'}: {why}")
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
    return join(problem, stretches(problem, last, arch, catalog))


def stretches(problem: Problem, last: int, arch: Arch, catalog: Catalog | None = None) -> list[Stretch]:
    """Return the stretches of m from 1 to `last` that `spans` joins; takes and raises what it does."""
    if last < 1:
        raise InputError(f"the largest m must be at least 1 (got {last})")
    catalog = catalog or load()
    _check(replace(problem, m=1), catalog)
    starts = sorted({1, *_switches(problem, last, catalog)})
    found: list[tuple[int, _Winner, tuple[float, ...]]] = []
    for first, next_first in zip(starts, [*starts[1:], last + 1], strict=True):
        beginning = replace(problem, m=first)
        winner = _find_rule(beginning, arch, catalog)
        found += ((m, winner, times) for m, times in winner.times_from(beginning, next_first - 1))
    lasts = [*(m - 1 for m, _, _ in found[1:]), last]
    return [Stretch(m, end, winner, times) for (m, winner, times), end in zip(found, lasts, strict=True)]


def join(problem: Problem, found: Sequence[Stretch], kept: Kept | None = None) -> list[Span]:
    """Return which kernel serves each m: of those that rules list, the fastest, the first of equals.

    Args:
        problem: What the stretches are of; its m is not looked at.
        found: From `stretches`.
        kept: What to choose from; all that rules list if None.
    """
    choices: list[Choice] = []
    for winner, run in groupby(found, key=attrgetter("winner")):
        among = [at for at, kernel in enumerate(winner.kernels) if kept is None or kernel in kept.kernels]
        best = None
        for stretch in run:
            fastest = min(among, key=stretch.times.__getitem__)
            if fastest == best:
                continue
            best = fastest
            served = replace(problem, m=stretch.first)
            choice = winner.choice(winner.kernels[best], served, kept.within if kept else 0.0)
            if not choices or (choices[-1].config, choices[-1].reason) != (choice.config, choice.reason):
                choices.append(choice)
    lasts = [*(choice.problem.m - 1 for choice in choices[1:]), found[-1].last]
    return [Span(choice.problem.m, end, choice) for choice, end in zip(choices, lasts, strict=True)]


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
    naming = [(origin, rule) for rule, origin in rules if name in rule.tiles]
    for origin, rule in naming:
        if rule.predicts and origin == choice.origin:
            kernels = (config, choice.config)
            time, least = (_predict(one, choice.problem, choice.catalog) for one in kernels)
            slower = "slower" if time > least else "no faster"
            return (
                f"could serve, but is predicted to be {slower}: {time:.2f} us, the chosen one {least:.2f} us"
            )
        if rule.matches(choice.problem, choice.arch.capability):
            return f"could serve; {origin.beside(choice.origin)} names it, but an earlier rule won"
    wanted = ", ".join(f"{origin.beside(choice.origin)} ({rule.describe()})" for origin, rule in naming)
    return f"could serve; named only by {wanted}" if wanted else "could serve; no rule names it"


def _predict(config: KernelConfig, problem: Problem, catalog: Catalog) -> float:
    """Return the time that a kernel is predicted to take for a problem, microseconds."""
    times = catalog.find_times(Shape.of(config).name, problem.types)
    return times.predict(config, problem.m, problem.n, problem.k, catalog.multiprocessors)
