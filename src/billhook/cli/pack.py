"""`billhook pack`: write a checkpoint with its weights as kernels read them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ToolchainError

if TYPE_CHECKING:
    from ..checkpoint.fill import Pack, Report
    from ..dtypes import DType
    from ..formats.host import Parts
    from ..formats.packed import PackedArrays

_MOST_JOBS = 8  # by default: packing is bound by memory, and each job holds a layer of it


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--act", type=click.Choice(["f16", "bf16"]), help="Activations' type.  [default: the model's]")
@click.option(
    "--fold",
    is_flag=True,
    help="Where e4m3 activations are asked for, round 4-bit weights times the scales of their groups to e4m3 "
    "(w4a8): faster, less exact, for 9.0a alone.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to pack; cuda needs torch.",
)
@click.option(
    "--jobs", "-j", type=click.IntRange(1), help="Layers packed at a time.  [default: processors, at most 8]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(
    *, checkpoint: Path, out: Path, act: str | None, fold: bool, device: str, jobs: int | None, as_json: bool
) -> None:
    """Write CHECKPOINT with its quantized weights as kernels read them, so that loading it packs nothing.

    CHECKPOINT is a Hugging Face folder with config.json and safetensors files. Tensors that are not quantized
    and the tokenizer's files are copied. A run that was stopped is resumed by the same command; a folder with
    a config.json was packed to the end. --jobs bounds memory: each holds one layer, or one of its experts.
    """
    from ..checkpoint import pack_checkpoint
    from ..dtypes import dtype

    started = time.perf_counter()
    with _progress() as progress:
        done = pack_checkpoint(
            checkpoint,
            out,
            dtype(act) if act else None,
            fold=fold,
            pack=_find_pack(device),
            jobs=jobs or min(os.cpu_count() or 1, _MOST_JOBS),
            progress=progress,
        )
    seconds = time.perf_counter() - started
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
        return
    files = done.written + done.kept
    kept = f", {done.kept} kept from an earlier run" if done.kept else ""
    click.echo(
        f"{out}: {done.modules} GEMMs in {files} file{'s' * (files > 1)}{kept}; "
        f"{done.before / 1e6:.1f} MB packed into {done.after / 1e6:.1f} MB, {seconds:.1f} s"
    )
    for note in done.notes:
        click.echo(f"note: {note}")


def _find_pack(device: str) -> Pack:
    """Return what packs one weight on a device.

    Raises:
        ToolchainError: torch, or a GPU that it can use, is missing.
    """
    from ..formats import host

    if device == "cpu":
        return host.pack
    try:
        import torch

        from ..ops import pack_quantized, to_arrays
    except ImportError as error:
        raise ToolchainError(
            "--device cuda needs torch, which is not installed; pack with --device cpu"
        ) from error
    if not torch.cuda.is_available():
        raise ToolchainError("--device cuda needs a GPU that torch can use; pack with --device cpu")
    types = {"f16": torch.float16, "bf16": torch.bfloat16}
    one_at_a_time = threading.Lock()  # so that the GPU's memory holds one layer; reading goes on beside it

    def pack(weight: Parts, activations: DType) -> PackedArrays:
        with one_at_a_time:
            return to_arrays(pack_quantized(weight, "cuda", types[activations.name]))

    return pack


@contextmanager
def _progress() -> Iterator[Any]:
    """Give what `pack_checkpoint` reports to: a bar on stderr if that is a terminal, else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("packing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def begin(total: int) -> Report:
            task = bar.add_task("", total=total)
            return lambda done: bar.update(task, advance=done)

        yield begin
