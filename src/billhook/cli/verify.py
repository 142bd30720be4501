"""`billhook verify`: run every kernel of a bundle on the GPU against the reference."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..build.bundle import Bundle
from ..errors import ToolchainError

if TYPE_CHECKING:
    from ..ops.verify import Verdict


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--max-tokens", type=click.IntRange(min=1), help="Largest token count. [default: the bundle's]")
@click.option("--seed", default=0, show_default=True, help="Of weights, activations and routings.")
@click.option("--quick", is_flag=True, help="Run only the first and last token count of each range.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def command(*, folder: Path, max_tokens: int | None, seed: int, quick: bool, as_json: bool) -> int:
    """Run every kernel of BUNDLE on this machine's GPU against a float64 reference.

    Every layer, token counts at the edges of each kernel's range and odd ones between, Mixture-of-Experts
    routings with empty and crowded experts. Fails if an error exceeds the bound derived from k and the
    formats (docs/numerics.md).
    """
    bundle = Bundle.load(folder)
    _require_gpu()
    import torch

    from ..ops.verify import verify_bundle

    verdicts = verify_bundle(
        bundle,
        torch.cuda.get_device_capability(),
        max_tokens=max_tokens,
        seed=seed,
        quick=quick,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    failed = [verdict for verdict in verdicts if not verdict.passed]
    print(_json(folder, verdicts) if as_json else _table(verdicts))
    if failed:
        names = ", ".join(verdict.kernel for verdict in failed)
        print(f"billhook: {len(failed)} kernels are out of bounds: {names}", file=sys.stderr)
    return 1 if failed else 0


def _require_gpu() -> None:
    try:
        import torch
    except ImportError as error:
        raise ToolchainError("verify needs torch with CUDA: pip install 'billhook[cuda,torch]'") from error
    if not torch.cuda.is_available():
        raise ToolchainError(
            "verify needs an NVIDIA GPU that torch can use; `billhook doctor` shows what is found"
        )


def _json(folder: Path, verdicts: list[Verdict]) -> str:
    import msgspec
    import torch

    kernels = [asdict(verdict) | {"passed": verdict.passed} for verdict in verdicts]
    report = {
        "bundle": str(folder),
        "gpu": torch.cuda.get_device_name(),
        "passed": all(verdict.passed for verdict in verdicts),
        "kernels": kernels,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def _table(verdicts: list[Verdict]) -> str:
    width = max(len(verdict.kernel) for verdict in verdicts)
    lines = [f"{'kernel':{width}}  runs  error/bound  rms/bound  worst at"]
    for one in verdicts:
        if not one.runs:
            lines.append(f"{one.kernel:{width}}  not run: compiled for {one.arch}, or beyond --max-tokens")
            continue
        verdict = "" if one.passed else "  OUT OF BOUNDS"
        lines.append(
            f"{one.kernel:{width}}  {one.runs:4}  {one.worst:11.3f}  {one.rms:9.3f}  {one.worst_at}{verdict}"
        )
    return "\n".join(lines)
