"""What is wrong with a schedule heuristic: an exact analysis of its rules.

The constants of the rules cut each of M, N and K (any size from 1 up) into intervals on which
every comparison keeps its answer. The product of the intervals is a finite grid of cells, on
each of which the rules choose one thing; what holds on the grid holds for all sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .heuristic import VARIABLES, Comparison, Rule, Tiling, choose

Cell = tuple[int, ...]  # indices of the intervals of M, N and K

# Sizes that a slip of the pen is measured against.
_ROUND = tuple(2**exponent for exponent in range(6, 18))
_NEAR = 0.02
_ALIGNMENT = {"M": 8, "N": 64, "K": 64}  # constants that are multiples of this look meant


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a rule list.

    Args:
        code: "gap", "unreachable", "contradiction", "duplicate", "unused-schedule" or "suspicious-constant".
        severity: "error" (the rules do not do what they say) or "warning".
        rule: Number of the rule, from 1; 0 for the list as a whole.
        line: Line in the rule file, from 1; 0 without a file.
        column: Column in that line, from 1; 0 without a file.
        message: What is wrong, with values.
    """

    code: str
    severity: str
    rule: int
    line: int
    column: int
    message: str


class Grid:
    """The cells of a rule list, and which rule wins on each.

    Args:
        rules: The ordered rules.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = rules
        self.starts: dict[str, list[int]] = {name: _starts(rules, name) for name in VARIABLES}
        masks = [_masks(rules, name, self.starts[name]) for name in VARIABLES]
        self.winners: dict[Cell, int | None] = {}
        self.chosen: list[set[Cell]] = [set() for _ in rules]  # cells a rule wins
        self.beaten_by: list[set[int]] = [set() for _ in rules]  # rules that win where this one also holds
        self.matches = [0] * len(rules)
        for m, n in itertools.product(range(len(masks[0])), range(len(masks[1]))):
            both = masks[0][m] & masks[1][n]
            for k, mask in enumerate(masks[2]):
                self._enter((m, n, k), both & mask)

    def _enter(self, cell: Cell, holding: int) -> None:
        winner = (holding & -holding).bit_length() - 1 if holding else None
        self.winners[cell] = winner
        if winner is None:
            return
        self.chosen[winner].add(cell)
        for rule in _bits(holding):
            self.matches[rule] += 1
            if rule != winner:
                self.beaten_by[rule].add(winner)

    def sizes(self, cell: Cell) -> tuple[int, int, int]:
        """Return the least M, N and K of a cell."""
        m, n, k = cell
        return self.starts["M"][m], self.starts["N"][n], self.starts["K"][k]

    def describe(self, low: Cell, high: Cell) -> str:
        """Say in words which sizes the cells from `low` to `high` hold."""
        return ", ".join(
            self._range(name, first, last) for name, first, last in zip(VARIABLES, low, high, strict=True)
        )

    def _range(self, name: str, first: int, last: int) -> str:
        starts = self.starts[name]
        start = starts[first]
        if last + 1 == len(starts):
            return f"any {name}" if start == 1 else f"{name} >= {start}"
        end = starts[last + 1] - 1
        return f"{name} = {start}" if start == end else f"{name} {start}..{end}"


def lint(rules: Sequence[Rule], schedules: Sequence[Tiling] = ()) -> list[Finding]:
    """Analyse a rule list.

    Args:
        rules: The ordered rules.
        schedules: Tilings that are compiled; those of the rules are always counted in.

    Returns:
        The findings, in order of the rules; those about the whole list last.
    """
    grid = Grid(rules)
    found = [*_dead_rules(grid), *_suspicious(rules)]
    found.sort(key=lambda finding: (finding.rule, finding.column))
    return [*found, *_unused(grid, schedules), *_gaps(grid)]


def _starts(rules: Sequence[Rule], variable: str) -> list[int]:
    comparisons = (one for rule in rules for one in rule.comparisons if one.variable == variable)
    return sorted({1} | {at for one in comparisons for at in one.breaks if at > 1})


def _masks(rules: Sequence[Rule], variable: str, starts: list[int]) -> list[int]:
    """For each interval, the set of rules (a bit each) whose comparisons of `variable` hold on it."""
    masks = []
    for start in starts:
        mask = 0
        for index, rule in enumerate(rules):
            if all(one.holds(start) for one in rule.comparisons if one.variable == variable):
                mask |= 1 << index
        masks.append(mask)
    return masks


def _bits(mask: int) -> Iterator[int]:
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


def _dead_rules(grid: Grid) -> Iterator[Finding]:
    seen: dict[frozenset[str], int] = {}
    for index, rule in enumerate(grid.rules):
        earlier = seen.setdefault(frozenset(map(str, rule.comparisons)), index)
        if earlier != index:
            other = grid.rules[earlier]
            same = "the same choice" if other.tiling == rule.tiling else f"which chooses {other.tiling}"
            yield _finding("duplicate", rule, index, f"same condition as rule {earlier + 1} ({same})")
        elif not grid.matches[index]:
            yield _finding("contradiction", rule, index, f"no size satisfies `{rule.condition}`")
        elif not grid.chosen[index]:
            takers = ", ".join(str(one + 1) for one in sorted(grid.beaten_by[index]))
            message = f"never chosen: rule {takers} takes all it would match"
            yield _finding("unreachable", rule, index, message)


def _finding(code: str, rule: Rule, index: int, message: str, severity: str = "error") -> Finding:
    return Finding(code, severity, index + 1, rule.line, rule.column, message)


def _unused(grid: Grid, schedules: Sequence[Tiling]) -> Iterator[Finding]:
    used = {rule.tiling for rule, cells in zip(grid.rules, grid.chosen, strict=True) if cells}
    for tiling in dict.fromkeys([*(rule.tiling for rule in grid.rules), *schedules]):
        if tiling not in used:
            yield Finding("unused-schedule", "warning", 0, 0, 0, f"{tiling} is compiled but never chosen")


def _gaps(grid: Grid) -> Iterator[Finding]:
    for low, high in _boxes({cell for cell, winner in grid.winners.items() if winner is None}):
        m, n, k = grid.sizes(low)
        message = f"no rule holds for {grid.describe(low, high)} (for one, M={m} N={n} K={k})"
        yield Finding("gap", "error", 0, 0, 0, message)


def _boxes(cells: set[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Cover `cells` with disjoint boxes, each grown along K, then N, then M."""
    left = set(cells)
    while left:
        low = min(left)
        high = low
        for axis in (2, 1, 0):
            while True:
                grown = (*high[:axis], high[axis] + 1, *high[axis + 1 :])
                corner = (*low[:axis], grown[axis], *low[axis + 1 :])
                if not all(cell in left for cell in _between(corner, grown)):
                    break
                high = grown
        left.difference_update(_between(low, high))
        yield low, high


def _between(low: Cell, high: Cell) -> Iterator[Cell]:
    return itertools.product(*(range(first, last + 1) for first, last in zip(low, high, strict=True)))


def _suspicious(rules: Sequence[Rule]) -> Iterator[Finding]:
    for index, rule in enumerate(rules):
        for place, comparison in enumerate(rule.comparisons):
            meant = _meant(comparison, rules)
            if meant is None:
                continue
            effect = _effect(rules, index, place, meant)
            message = f"`{comparison}`: {comparison.value} looks like a slip for {meant}{effect}"
            column = rule.column + comparison.column if rule.column else 0
            yield Finding("suspicious-constant", "warning", index + 1, rule.line, column, message)


def _meant(comparison: Comparison, rules: Sequence[Rule]) -> int | None:
    """Return the constant that was probably meant, or None if this one looks right.

    Round constants are what they seem. Others are slips if their digits are those of a round one in another
    order, or if they are close to it; but `K < 4097` says `K <= 4096`, so a round neighbour speaks for them.
    """
    value = comparison.value
    aligned = _ALIGNMENT[comparison.variable]
    if value % aligned == 0:
        return None
    others = {one.value for rule in rules for one in rule.comparisons if one.value % aligned == 0}
    candidates = sorted(others | set(_ROUND))
    swapped = [one for one in candidates if value >= 100 and sorted(str(one)) == sorted(str(value))]
    near = [one for one in candidates if abs(one - value) <= _NEAR * one]
    if any((value + step) % aligned == 0 for step in (-1, 1)):
        near = []
    return min(swapped or near, key=lambda one: abs(one - value), default=None)


def _effect(rules: Sequence[Rule], index: int, place: int, meant: int) -> str:
    """Say on which sizes the meant constant would choose something else."""
    rule = rules[index]
    comparisons = list(rule.comparisons)
    comparisons[place] = replace(comparisons[place], value=meant)
    corrected = [*rules[:index], replace(rule, comparisons=tuple(comparisons)), *rules[index + 1 :]]
    grid = Grid([*rules, *corrected])  # cut at the constants of both
    changed: set[Cell] = set()
    for cell in grid.winners:
        before, after = choose(rules, *grid.sizes(cell)), choose(corrected, *grid.sizes(cell))
        if (before and before.tiling) != (after and after.tiling):
            changed.add(cell)
    if not changed:
        return ""
    low, high = next(_boxes(changed))
    before, after = choose(rules, *grid.sizes(low)), choose(corrected, *grid.sizes(low))
    was, now = before.tiling if before else "nothing", after.tiling if after else "nothing"
    return f"; with {meant}, {grid.describe(low, high)} would take {now} instead of {was}"
