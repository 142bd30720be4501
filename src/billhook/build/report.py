"""Show a build on a terminal: progress while it runs, a table at its end, or JSON for programs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import CompileError
from .artifact import Artifact, Unit
from .make import Outcome

if TYPE_CHECKING:
    from rich.console import Console

    from ..plan import Plan

_LOG_LINES = 40  # of a failed kernel's log; the first errors are those that matter
_FILE_WIDTH = 200  # columns of a table that goes to a file or a pipe


class Progress:
    """Tell on stderr how far a build is: a bar on a terminal, else one line per kernel.

    Args:
        total: Kernels to be compiled.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._total = total
        self._count = 0
        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("compiling"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def done(self, unit: Unit, outcome: Artifact | CompileError) -> None:
        """Count one kernel."""
        self._count += 1
        self._bar.update(self._task, advance=1, description=unit.name)
        if not self._console.is_terminal:
            print(f"[{self._count}/{self._total}] {unit.name}: {_how(outcome)}", file=sys.stderr, flush=True)


def _how(outcome: Artifact | CompileError) -> str:
    if isinstance(outcome, CompileError):
        return "FAILED"
    return "cached" if outcome.cached else f"{outcome.seconds:.1f} s"


def print_outcome(outcome: Outcome, plan: Plan) -> None:
    """Print what was compiled as a table on stdout; warnings and failed kernels' logs on stderr."""
    from rich.console import Console

    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=_FILE_WIDTH)
    if outcome.artifacts:
        _print_table(out, outcome, plan)
    for artifact in outcome.artifacts:
        for warning in _worries(artifact):
            print(f"billhook: warning: {artifact.unit.name}: {warning}", file=sys.stderr)
    for name, error in outcome.failures.items():
        print(f"billhook: error: {error}", file=sys.stderr)
        lines = error.log.splitlines()
        print("\n".join(f"  {line}" for line in lines[:_LOG_LINES]), file=sys.stderr)
        if len(lines) > _LOG_LINES:
            print(f"  ... and {len(lines) - _LOG_LINES} more lines on {name}", file=sys.stderr)


def _print_table(out: Console, outcome: Outcome, plan: Plan) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kernel", overflow="fold")
    table.add_column("arch")
    for heading in ("registers", "shared", "spills", "cubin", "compile"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("needed by", overflow="fold")
    needed_by = _needed_by(plan)
    for artifact in outcome.artifacts:
        unit = artifact.unit
        table.add_row(
            unit.name,
            str(unit.arch),
            str(artifact.registers),
            str(artifact.shared_memory),
            str(artifact.spills) if not artifact.spills else f"[red]{artifact.spills}[/red]",
            str(len(artifact.cubin)),
            _how(artifact),
            _layers(unit, needed_by, one_model=len({layer.model for layer in plan.layers}) == 1),
        )
    out.print(table)


def _worries(artifact: Artifact) -> list[str]:
    """Return what a kernel's author would want to know: the compiler's warnings, and spills."""
    spilling = [
        f"{name if name != artifact.unit.name else 'it'} spills registers: each thread stores "
        f"{entry.spill_stores} and loads {entry.spill_loads} bytes"
        for name, entry in artifact.entries.items()
        if entry.spills
    ]
    return [*artifact.warnings, *spilling]


def _needed_by(plan: Plan) -> dict[tuple[str, str], list[str]]:
    """Return (kernel name, arch) -> ids of the layers that need it."""
    return {
        (kernel.name, kernel.arch): list(dict.fromkeys(need.layer for need in kernel.needed_by))
        for kernel in plan.kernels
    }


def _layers(unit: Unit, needed_by: dict[tuple[str, str], list[str]], *, one_model: bool) -> str:
    if unit.kind == "support":
        return "MoE routing"
    ids = needed_by.get((unit.name, str(unit.arch)), [])
    return " ".join(one.split("/", 1)[1].removeprefix("tp1/") if one_model else one for one in ids)


def summary(outcome: Outcome, plan: Plan) -> dict[str, Any]:
    """Return what `billhook build --json` prints; docs/bundle.md describes it."""
    needed_by = _needed_by(plan)
    return {
        "bundle": str(outcome.bundle.folder) if outcome.bundle else None,
        "kernels": [
            {
                "name": artifact.unit.name,
                "kind": artifact.unit.kind,
                "arch": str(artifact.unit.arch),
                "registers": artifact.registers,
                "shared_memory": artifact.shared_memory,
                "spills": artifact.spills,
                "cubin_bytes": len(artifact.cubin),
                "compile_seconds": round(artifact.seconds, 3),
                "cached": artifact.cached,
                "warnings": _worries(artifact),
                "needed_by": needed_by.get((artifact.unit.name, str(artifact.unit.arch)), []),
            }
            for artifact in outcome.artifacts
        ],
        "failures": [
            {"name": name, "error": str(error), "log": error.log} for name, error in outcome.failures.items()
        ],
    }
