"""Records of every tile -> suggested rules for `catalog/rules/native.toml`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .record import Record
from .rows import TILE, geomean

TIE = 0.01  # a tile at most this much slower than the best counts as equal: fewer switch points


@dataclass(frozen=True)
class Choice:
    """The tile for one range of rows.

    Args:
        moe: Whether the rule is for MoE layers.
        above: The range begins above this many rows per weight matrix.
        last: Last rows measured in it; None for the open end.
        tile: Tile without stages, as rules write it.
        loss: Geometric mean, over the shapes measured, of the tile's time over the best tile's.
    """

    moe: bool
    above: float
    last: float | None
    tile: str
    loss: float

    def serves(self, moe: bool, rows: float) -> bool:
        """Whether this is the range of so many rows."""
        return moe == self.moe and rows > self.above and (self.last is None or rows <= self.last)


Shape = tuple[int, int, str]  # n, k, types and group size
Times = dict[Shape, dict[str, float]]  # -> tile -> microseconds


def choose(records: Iterable[Record]) -> list[Choice]:
    """Return, for dense and MoE layers, the tile that costs least over all measured shapes, by rows.

    Args:
        records: Those of a run with `--all-tiles`; others are ignored.

    Returns:
        Ranges of rows in order, neighbours with one tile merged; empty without tile records.
    """
    measured: dict[bool, dict[float, Times]] = {False: {}, True: {}}
    for record in records:
        if record.times is None or not record.contestant.startswith(TILE):
            continue
        problem = record.case.problem
        shapes = measured[problem.moe].setdefault(problem.rows_per_expert, {})
        _note(shapes.setdefault((problem.n, problem.k, record.case.kind), {}), record)
    return [choice for moe, by_rows in measured.items() for choice in _merge(moe, by_rows)]


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


def _merge(moe: bool, by_rows: dict[float, Times]) -> list[Choice]:
    choices: list[Choice] = []
    above = 0.0
    for rows in sorted(by_rows):
        found = losses(by_rows[rows])
        if not found:
            continue
        best = min(found, key=lambda tile: found[tile])
        before = choices[-1] if choices else None
        if before and found.get(before.tile, float("inf")) <= found[best] * (1 + TIE):
            choices[-1] = Choice(moe, before.above, rows, before.tile, max(before.loss, found[before.tile]))
        else:
            choices.append(Choice(moe, above, rows, best, found[best]))
        above = rows
    if choices:
        end = choices[-1]
        choices[-1] = Choice(moe, end.above, None, end.tile, end.loss)
    return choices


def exceptions(records: Iterable[Record], at_least: float = 0.05) -> list[str]:
    """Return a line for each problem on which another tile beats the suggested one by `at_least`."""
    records = list(records)
    choices = choose(records)
    measured: dict[tuple[bool, float, Shape], dict[str, float]] = {}
    for record in records:
        if record.contestant.startswith(TILE) and record.times is not None:
            problem = record.case.problem
            key = (problem.moe, problem.rows_per_expert, (problem.n, problem.k, record.case.kind))
            _note(measured.setdefault(key, {}), record)
    lines = []
    for (moe, rows, (n, k, kind)), tiles in measured.items():
        chosen = next(choice.tile for choice in choices if choice.serves(moe, rows))
        fastest = min(tiles, key=lambda tile: tiles[tile])
        gain = tiles[chosen] / tiles[fastest] - 1 if chosen in tiles else 0.0
        if gain >= at_least:
            words = ("moe" if moe else "dense", kind, f"n={n} k={k} rows={rows:g}")
            problem_words = " ".join(word for word in words if word)
            lines.append(f"# {problem_words}: {fastest} beats {chosen} by {gain:.0%}")
    return lines


def render_rules(choices: list[Choice]) -> str:
    """Return the choices as rules, in the layout of `catalog/rules/native.toml`."""
    blocks = []
    for choice in choices:
        bounds = [f"above = {choice.above:g}"] if choice.above else []
        bounds += [f"max = {choice.last:g}"] if choice.last is not None else []
        lines = [f"# {choice.loss:.3f} of the best tile's time, mean over the shapes measured", "[[rules]]"]
        lines.append(f"moe = {'true' if choice.moe else 'false'}")
        lines += [f"rows = {{ {', '.join(bounds)} }}"] if bounds else []
        lines.append(f'tile = "{choice.tile}"')
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
