"""Records of one run, side by side by problem."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .record import Case, Record

OURS = "ours"
TILE = "ours:"  # followed by a tile: that tile, whatever dispatch would choose
FLOOR = "read"  # the kernel that only reads the weights: a measured floor, not a contestant
PEERS = ("marlin", "machete", "humming")  # those that compute from the same quantized weights
COLUMNS = (FLOOR, OURS, "torch", *PEERS)


@dataclass(frozen=True)
class Row:
    """All contestants on one problem of one run.

    Args:
        case: The problem.
        floor_us: Its computed floor.
        records: By contestant.
    """

    case: Case
    floor_us: float
    records: dict[str, Record]

    def median(self, contestant: str) -> float | None:
        """Return a contestant's median, microseconds; None if it has none."""
        record = self.records.get(contestant)
        return record.times.median_us if record and record.times else None

    @property
    def best_peer(self) -> tuple[str, float] | None:
        """The fastest peer on the same quantized weights and its median."""
        times = [(time, peer) for peer in PEERS if (time := self.median(peer)) is not None]
        return (min(times)[1], min(times)[0]) if times else None

    @property
    def best_tile(self) -> tuple[str, float] | None:
        """The fastest fixed tile and its median."""
        times = [
            (record.times.median_us, name.removeprefix(TILE))
            for name, record in self.records.items()
            if record.times and name.startswith(TILE)
        ]
        return (min(times)[1], min(times)[0]) if times else None

    def ratio(self, peer: str | None = None) -> float | None:
        """Return our median over that of `peer` (the best one if None); None if either is missing."""
        ours = self.median(OURS)
        best = self.best_peer
        theirs = self.median(peer) if peer else (best[1] if best else None)
        return ours / theirs if ours is not None and theirs is not None else None


def group(records: Iterable[Record]) -> dict[str, list[Row]]:
    """Return rows by run, in the order of the records; the last record of a contestant counts."""
    runs: dict[str, dict[Case, Row]] = {}
    for record in records:
        rows = runs.setdefault(record.run, {})
        row = rows.setdefault(record.case, Row(record.case, record.floor_us, {}))
        row.records[record.contestant] = record
    return {run: list(rows.values()) for run, rows in runs.items()}


def geomean(values: Iterable[float]) -> float | None:
    """Return the geometric mean; None of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def align(table: list[list[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, all others to the right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
