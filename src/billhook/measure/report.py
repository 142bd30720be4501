"""Records -> the comparison tables, with no GPU."""

from __future__ import annotations

from collections.abc import Iterable

from . import by_format
from .record import Record
from .rows import COLUMNS, PEERS, Row, align, geomean, group

FEW_LABELS = 3  # so many problems are named one by one


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
        *by_format.render(rows),
        *_reasons(rows),
    ]
    return "\n".join(lines)


def _cell(record: Record | None) -> str:
    return f"{record.times.median_us:.1f}" if record and record.times else "-"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _summary(rows: list[Row]) -> list[str]:
    """Return our time over each peer's, over all dense and all MoE problems of a kind."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        words = ("MoE" if row.case.num_experts else "dense", row.case.kind)
        kinds.setdefault(" ".join(word for word in words if word), []).append(row)
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
        some = (
            ", ".join(labels) if len(labels) <= FEW_LABELS else f"{len(labels)} problems, first {labels[0]}"
        )
        where = "everywhere" if len(labels) == len(rows) else some
        lines.append(f"skipped: {name}: {reason} [{where}]")
    return lines
