"""Records -> the comparison tables, with no GPU."""

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


def render(records: Iterable[Record]) -> str:
    """Return one table per run: floor, contestants, ratios, and why something is missing."""
    return "\n\n".join(_render_run(run, rows) for run, rows in group(records).items())


def _render_run(run: str, rows: list[Row]) -> str:
    machine = next(iter(rows[0].records.values())).machine
    present = [name for name in COLUMNS if any(name in row.records for row in rows)]
    tiled = any(row.best_tile for row in rows)
    header = ["problem", "floor", *present, "best peer", "ours/best"]
    table = [header + ["best tile", "its time"] * tiled]
    for row in rows:
        best, tile = row.best_peer, row.best_tile
        table.append(
            [
                row.case.label,
                f"{row.floor_us:.1f}",
                *(_cell(row.records.get(name)) for name in present),
                best[0] if best else "-",
                _ratio(row.ratio()),
                *([tile[0] if tile else "-", f"{tile[1]:.1f}" if tile else "-"] if tiled else []),
            ]
        )
    peers = (
        f"; {', '.join(f'{name} {version}' for name, version in machine.peers.items())}"
        if machine.peers
        else ""
    )
    lines = [
        f"run {run}  {machine.gpu}, driver {machine.driver or 'unknown'}, CUDA {machine.cuda}, "
        f"torch {machine.torch}"
        f"{peers}; commit {machine.commit or 'unknown'}",
        "medians in microseconds per call; spread p10 to p90 is in the records",
        "",
        *align(table),
        "",
        *_summary(rows),
        *_reasons(rows),
    ]
    return "\n".join(lines)


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


def _cell(record: Record | None) -> str:
    return f"{record.times.median_us:.1f}" if record and record.times else "-"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _summary(rows: list[Row]) -> list[str]:
    """Return our time over each peer's, over all dense and all MoE problems."""
    kinds = {
        "dense": [row for row in rows if not row.case.num_experts],
        "MoE": [row for row in rows if row.case.num_experts],
    }
    table = []
    for kind, part in kinds.items():
        for peer in (None, "torch", *PEERS):
            ratios = [ratio for row in part if (ratio := row.ratio(peer)) is not None]
            mean = geomean(ratios)
            if mean is not None:
                line = (
                    f"{kind}, ours/{peer or 'best peer'}",
                    f"{mean:.3f}",
                    f"{max(ratios):.2f}",
                    str(len(ratios)),
                )
                table.append(list(line))
    return [*align([["", "geomean", "worst", "problems"], *table]), ""] if table else []


def _reasons(rows: list[Row]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, record in row.records.items():
            if record.skipped:
                reasons.setdefault((name, record.skipped), []).append(row.case.label)
    lines = []
    for (name, reason), labels in reasons.items():
        where = "everywhere" if len(labels) == len(rows) else ", ".join(labels)
        lines.append(f"skipped: {name}: {reason} [{where}]")
    return lines
