"""`billhook build`: compile a model's kernels into a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Request, parse_sizes, plan_request, request_options

if TYPE_CHECKING:
    from ..build import Input
    from ..models import Model


@click.command()
@request_options
@click.option(
    "--out", default="build", show_default=True, type=click.Path(path_type=Path), help="Bundle to write."
)
@click.option(
    "--jobs", "-j", type=click.IntRange(1), help="Compilations at a time.  [default: all processors]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON (docs/bundle.md).")
def command(*, request: Request, out: Path, jobs: int | None, as_json: bool) -> None:
    """Compile every kernel that MODEL needs into a bundle.

    MODEL is a Hugging Face config.json, or a folder that holds one. Kernels that were compiled before
    come from the cache. Exit code 1 if a kernel does not compile; the others are kept.
    """
    from ..build import build_plan, check_target, plan_units
    from ..errors import CompileError
    from .outcome import Progress, print_outcome, summary

    check_target(out)
    loaded, plan = plan_request(request)
    options = {
        "arch": ",".join(plan.archs),
        "tp": ",".join(map(str, parse_sizes(request.tp))),
        "max_tokens": str(plan.max_tokens),
        "act": request.act or "the model's",
        "narrow_activations": str(request.narrow),
        "fused": str(not request.unfused),
        "within": request.within,
        "multiprocessors": str(plan.multiprocessors),
        "rules": request.rules,
    }
    started = time.perf_counter()
    with Progress(len(plan_units(plan))) as progress:
        outcome = build_plan(
            plan, out, jobs=jobs, inputs=_inputs(loaded), options=options, done=progress.done
        )
    seconds = time.perf_counter() - started
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(summary(outcome, plan)), indent=2).decode())
    else:
        print_outcome(outcome, plan)
        if outcome.bundle:
            compiled = sum(not artifact.cached for artifact in outcome.artifacts)
            click.echo(f"\n{out}: {len(outcome.artifacts)} kernels, {compiled} compiled, {seconds:.1f} s")
    if outcome.failures:
        raise CompileError(
            f"{len(outcome.failures)} of {len(outcome.failures) + len(outcome.artifacts)} kernels did not "
            "compile; no bundle was written, the others are kept in the cache"
        )


def _inputs(models: Iterable[Model]) -> list[Input]:
    """Return name and hash of each config file."""
    from ..build import Input

    return [
        Input(
            f"{model.file.resolve().parent.name}/{model.file.name}",
            hashlib.sha256(model.file.read_bytes()).hexdigest(),
        )
        for model in models
    ]
