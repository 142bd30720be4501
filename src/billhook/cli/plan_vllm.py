"""`billhook plan --target vllm-...`: show what a narrowed build of a vLLM tree keeps and drops, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError
from ..vllm.job import FAMILIES, Job, Narrowing, family
from ..vllm.release import ACTIVATIONS, Release, load_release, releases

if TYPE_CHECKING:
    from ..vllm.report import Report

_TARGETS = [*(f"vllm-{number}" for number in releases()), "vllm"]


@click.command()
@click.argument("configs", nargs=-1, metavar="[MODEL]...", type=click.Path(path_type=Path))
@click.option(
    "--target", required=True, type=click.Choice(_TARGETS), help="The release; `vllm`: ask the tree."
)
@click.option("--tree", type=click.Path(path_type=Path), help="A vLLM source tree, for --target vllm.")
@click.option("--family", "families", multiple=True, help=f"{', '.join(FAMILIES)}.  [default: all]")
@click.option("--arch", "targets", multiple=True, default=["9.0a"], show_default=True, help="GPU targets.")
@click.option("--models", multiple=True, type=click.Path(path_type=Path), help="The same as MODEL.")
@click.option("--formats", multiple=True, help="Weight formats, in place of the models' own.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens of one step.")
@click.option("--act", "activations", multiple=True, help=f"Activations: {', '.join(ACTIVATIONS)}.")
@click.option("--group-size", "group_sizes", multiple=True, type=int, help="-1: channel scales.")
@click.option("--qqq", is_flag=True, help="Add Machete's types with 8-bit activations.")
@click.option("--heuristic", type=click.Path(path_type=Path), help="Machete schedule rules from a TOML file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    configs: tuple[Path, ...],
    target: str,
    tree: Path | None,
    families: tuple[str, ...],
    targets: tuple[str, ...],
    models: tuple[Path, ...],
    formats: tuple[str, ...],
    max_tokens: int | None,
    activations: tuple[str, ...],
    group_sizes: tuple[int, ...],
    qqq: bool,
    heuristic: Path | None,
    as_json: bool,
) -> None:
    """Show how many kernels of each file a narrowed build of a vLLM tree keeps, and why it drops the others.

    The options are those of `billhook generate`. Nothing is written.
    """
    from ..vllm.report import report
    from ..vllm.targets import parse_targets

    release = _release(target, tree)
    narrowing = Narrowing((*configs, *models), _split(formats), max_tokens, _split(activations), group_sizes)
    for name in _split(families):
        family(name)  # refuses names that do not exist
    archs = parse_targets(targets)
    reports = [
        report(Job(name, release, archs, narrowing=narrowing, qqq=qqq, heuristic=heuristic))
        for name in _split(families) or FAMILIES
    ]
    if as_json:
        import msgspec

        answer = {"release": release.release, "families": reports}
        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        click.echo("\n\n".join("\n".join(_show(one)) for one in reports))


def _release(target: str, tree: Path | None) -> Release:
    number = target.removeprefix("vllm").removeprefix("-")
    if tree is not None:
        from ..vllm.tree import recognise

        found = recognise(tree).release
        if number and number != found.release:
            raise InputError(f"{tree} is a tree of vLLM {found.release}, not of {number}")
        return found
    if not number:
        raise InputError(f"--target vllm needs --tree; without, name a release: {', '.join(_TARGETS[:-1])}")
    return load_release(number)


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


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for value in values for word in value.replace(",", " ").split())
