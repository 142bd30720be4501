"""`billhook plan --target vllm-...`: show what a narrowed build of a vLLM tree keeps and drops, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..vllm.job import FAMILIES, Job, Narrowing
from .vllm_options import (
    PATH,
    find_release,
    find_tree,
    heuristic_option,
    narrowing_options,
    parse_families,
    qqq_option,
    target_option,
)

if TYPE_CHECKING:
    from ..vllm.report import Report


@click.command()
@target_option
@click.option("--tree", type=PATH, help="A vLLM source tree, for --target vllm.")
@click.option("--family", "families", multiple=True, help=f"{', '.join(FAMILIES)}.  [default: all]")
@click.option("--arch", "targets", multiple=True, default=["9.0a"], show_default=True, help="GPU targets.")
@narrowing_options
@qqq_option
@heuristic_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    target: str,
    tree: Path | None,
    families: tuple[str, ...],
    targets: tuple[str, ...],
    narrowing: Narrowing,
    qqq: bool,
    heuristic: Path | None,
    as_json: bool,
) -> None:
    """Show how many kernels of each file a narrowed build of a vLLM tree keeps, and why it drops the others.

    The options are those of `billhook generate`. Nothing is written.
    """
    from ..vllm.report import report
    from ..vllm.targets import parse_targets
    from .columns import fold

    release = find_release(target) if tree is None else find_tree(target, tree).release
    archs = parse_targets(targets)
    reports = [
        report(Job(name, release, archs, narrowing=narrowing, qqq=qqq, heuristic=heuristic))
        for name in parse_families(families) or FAMILIES
    ]
    if as_json:
        import msgspec

        answer = {"release": release.release, "families": reports}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        click.echo("\n\n".join("\n".join(fold(_show(one))) for one in reports))


def _show(report: Report) -> Iterator[str]:
    from .columns import align

    yield f"{report.family}: {report.kept} kernels kept, {report.dropped} dropped"
    rows: list[tuple[object, ...]] = []
    for part in report.parts:
        reasons = [f"{count} because {reason}" for reason, count in part.dropped.items()] or [""]
        rows.append((part.name, part.kept, sum(part.dropped.values()), reasons[0]))
        rows += [("", "", "", reason) for reason in reasons[1:]]
    if rows:
        yield from align(
            [("file" if report.family != "machete" else "types", "kept", "dropped", "why"), *rows]
        )
    for request in report.unserved:
        yield f"not served by this release: {request}"
