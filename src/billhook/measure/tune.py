"""Records of every tile -> suggested rules for `catalog/rules/native.toml`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..config import Problem
from .record import Record
from .rows import TILE, geomean

TIE = 0.01  # a tile at most this much slower than the best counts as equal: fewer switch points


@dataclass(frozen=True)
class Choice:
    """The tile for one range of rows.

    Args:
        activations: Name of the activations' type.
        moe: Whether the rule is for MoE layers.
        above: The range begins above this many rows per weight matrix.
        last: Last rows measured in it; None for the open end.
        tile: Tile without stages, as rules write it.
        loss: Geometric mean, over the shapes measured, of the tile's time over the best tile's.
    """

    activations: str
    moe: bool
    above: float
    last: float | None
    tile: str
    loss: float

    def serves(self, problem: Problem) -> bool:
        """Whether this is the range of the problem's rows."""
        alike = (self.activations, self.moe) == (problem.types.a.name, problem.moe)
        rows = problem.rows_per_expert
        return alike and rows > self.above and (self.last is None or rows <= self.last)


Shape = tuple[int, int, str]  # n, k, types and group size
Times = dict[Shape, dict[str, float]]  # -> tile -> microseconds


def choose(records: Iterable[Record]) -> list[Choice]:
    """Return, for each type of activations, the tile that costs least over all measured shapes, by rows.

    Args:
        records: Those of a run with `--all-tiles`; others are ignored.

    Returns:
        Ranges of rows in order, neighbours with one tile merged, dense layers first; empty without tile
        records.
    """
    measured: dict[tuple[bool, str], dict[float, Times]] = {}
    for record in records:
        if record.times is None or not record.contestant.startswith(TILE):
            continue
        problem = record.case.problem
        by_rows = measured.setdefault((problem.moe, problem.types.a.name), {})
        shapes = by_rows.setdefault(problem.rows_per_expert, {})
        _note(shapes.setdefault((problem.n, problem.k, record.case.kind), {}), record)
    return [
        choice
        for (moe, activations), by_rows in sorted(measured.items())
        for choice in _merge(activations, moe, by_rows)
    ]


def _note(tiles: dict[str, float], record: Record) -> None:
    """Keep a tile's time, the best of its pipeline depths."""
    tile = re.sub(r"s\d+(?=(c\d+)?p?$)", "", record.contestant[len(TILE) :])
    if record.times is not None:
        tiles[tile] = min(record.times.median_us, tiles.get(tile, math.inf))


def losses(shapes: Times) -> dict[str, float]:
    """Return each tile's geometric mean of time over the best tile's, for tiles measured on every shape."""
    everywhere = set.intersection(*(set(tiles) for tiles in shapes.values()))
    found = {
        tile: geomean(tiles[tile] / min(tiles.values()) for tiles in shapes.values())
        for tile in sorted(everywhere)
    }
    return {tile: loss for tile, loss in found.items() if loss is not None}


def _merge(activations: str, moe: bool, by_rows: dict[float, Times]) -> list[Choice]:
    choices: list[Choice] = []
    above = 0.0
    for rows in sorted(by_rows):
        found = losses(by_rows[rows])
        if not found:
            continue
        best = min(found, key=lambda tile: found[tile])
        before = choices[-1] if choices else None
        if before and found.get(before.tile, float("inf")) <= found[best] * (1 + TIE):
            choices[-1] = replace(before, last=rows, loss=max(before.loss, found[before.tile]))
        else:
            choices.append(Choice(activations, moe, above, rows, best, found[best]))
        above = rows
    if choices:
        choices[-1] = replace(choices[-1], last=None)
    return choices


def exceptions(records: Iterable[Record], at_least: float = 0.05) -> list[str]:
    """Return a line for each problem on which another tile beats the suggested one by `at_least`."""
    records = list(records)
    choices = choose(records)
    measured: dict[tuple[Problem, str], dict[str, float]] = {}
    for record in records:
        if record.contestant.startswith(TILE) and record.times is not None:
            _note(measured.setdefault((record.case.problem, record.case.kind), {}), record)
    lines = []
    for (problem, kind), tiles in measured.items():
        chosen = next(choice.tile for choice in choices if choice.serves(problem))
        fastest = min(tiles, key=lambda tile: tiles[tile])
        gain = tiles[chosen] / tiles[fastest] - 1 if chosen in tiles else 0.0
        if gain >= at_least:
            sizes = f"n={problem.n} k={problem.k} rows={problem.rows_per_expert:g}"
            words = ("moe" if problem.moe else "dense", kind, sizes)
            problem_words = " ".join(word for word in words if word)
            lines.append(f"# {problem_words}: {fastest} beats {chosen} by {gain:.0%}")
    return lines


def render_rules(choices: list[Choice]) -> str:
    """Return the choices as rules, in the layout of `catalog/rules/native.toml`.

    They name types of activations if several were measured, and hold for all if one was.
    """
    blocks = []
    several = len({choice.activations for choice in choices}) > 1
    for choice in choices:
        bounds = [f"above = {choice.above:g}"] if choice.above else []
        bounds += [f"max = {choice.last:g}"] if choice.last is not None else []
        lines = [f"# {choice.loss:.3f} of the best tile's time, mean over the shapes measured", "[[rules]]"]
        lines += [f'activations = ["{choice.activations}"]'] if several else []
        lines.append(f"moe = {'true' if choice.moe else 'false'}")
        lines += [f"rows = {{ {', '.join(bounds)} }}"] if bounds else []
        lines.append(f'tile = "{choice.tile}"')
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
