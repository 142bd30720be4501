"""Show a build: progress while it runs, a table at its end, or JSON for programs."""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from ..errors import CompileError
from .columns import align
from .options import layer_name

if TYPE_CHECKING:
    from ..build import Artifact, Outcome, Unit
    from ..plan import Plan

_LOG_LINES = 40  # of a failed kernel's log; the first errors are those that matter
_HEADINGS = ("arch", "registers", "shared", "spills", "cubin", "compile", "needed by")


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
        self._bar.update(self._task, advance=1)
        if not self._console.is_terminal:
            how = "FAILED" if isinstance(outcome, CompileError) else _how(outcome)
            print(f"[{self._count}/{self._total}] {unit.name}: {how}", file=sys.stderr, flush=True)


def _how(artifact: Artifact) -> str:
    return "cached" if artifact.cached else f"{artifact.seconds:.1f} s"


def print_outcome(outcome: Outcome, plan: Plan) -> None:
    """Print what was compiled as a table on stdout; warnings and failed kernels' logs on stderr."""
    if outcome.artifacts:
        click.echo("\n".join(_table(outcome, plan)))
    for artifact in outcome.artifacts:
        for warning in _worries(artifact):
            click.echo(f"billhook: warning: {artifact.unit.name}: {warning}", err=True)
    for name, error in outcome.failures.items():
        click.echo(f"billhook: error: {error}", err=True)
        lines = error.log.splitlines()
        click.echo("\n".join(f"  {line}" for line in lines[:_LOG_LINES]), err=True)
        if len(lines) > _LOG_LINES:
            click.echo(f"  ... and {len(lines) - _LOG_LINES} more lines on {name}", err=True)


def _table(outcome: Outcome, plan: Plan) -> list[str]:
    """Return a line per kernel; on a terminal too narrow for its name and its numbers, two."""
    needed_by = _needed_by(plan)
    one_model = len({layer.model for layer in plan.layers}) == 1
    names = ["kernel", *(artifact.unit.name for artifact in outcome.artifacts)]
    rows = [
        (
            str(artifact.unit.arch),
            artifact.registers,
            artifact.shared_memory,
            artifact.spills,
            len(artifact.cubin),
            _how(artifact),
            _layers(artifact.unit, needed_by, one_model=one_model),
        )
        for artifact in outcome.artifacts
    ]
    wide = align([(name, *row) for name, row in zip(names, [_HEADINGS, *rows], strict=True)])
    if not sys.stdout.isatty() or max(map(len, wide)) <= get_terminal_size().columns:
        return wide
    numbers = align([_HEADINGS, *rows])
    return [line for name, row in zip(names, numbers, strict=True) for line in (name, f"    {row}")]


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
        from ..emit import SUPPORT

        return SUPPORT[unit.name.partition("_")[0]]
    ids = needed_by.get((unit.name, str(unit.arch)), [])
    return " ".join(layer_name(one, one_model=one_model) for one in ids)


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
