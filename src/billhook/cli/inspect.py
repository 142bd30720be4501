"""`billhook inspect`: how a checkpoint's layers are stored, and which kernels serve them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import ACTIVATIONS

if TYPE_CHECKING:
    from ..arch import Arch
    from ..checkpoint import Answer, Checkpoint, Row, Use


@dataclass(frozen=True)
class _Found:
    """What is shown of a checkpoint.

    Args:
        checkpoint: The folder.
        rows: Its linear layers, folded.
        uses: Its GEMMs; none if the architecture is not known.
        inputs: How many layers the config wants 8-bit inputs for, by their type.
        why: Why there are no GEMMs, in words.
        tp: Tensor-parallel size of the GEMMs.
        max_tokens: Most tokens that they are asked for.
    """

    checkpoint: Checkpoint
    rows: Sequence[Row]
    uses: Sequence[Use]
    inputs: Mapping[str, int]
    why: str
    tp: int
    max_tokens: int

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of quantized layers, of other linear layers, of all other tensors, and of all."""
        from ..checkpoint import UNQUANTIZED

        total = sum(tensor.bytes for tensor in self.checkpoint.tensors.values())
        linear = sum(row.bytes for row in self.rows)
        plain = sum(row.bytes for row in self.rows if row.stored.format == UNQUANTIZED)
        return {
            "quantized": linear - plain,
            "unquantized": plain,
            "other": total - linear,
            "total": total,
        }

    @property
    def notes(self) -> list[str]:
        """What to know beside the tables."""
        asked = [
            f"inputs of {count} layer{'s' * (count > 1)} are quantized to {kind} where that is asked for "
            f"(here by --act {kind}, of plan and build by --narrow-activations, of billhook.load by "
            "narrow_activations=True)"
            for kind, count in self.inputs.items()
        ]
        return [*self.checkpoint.notes, *([self.why] if self.why else []), *asked]


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--arch", multiple=True, default=["9.0a"], show_default=True, help="GPU targets: 9.0a, 8.0,8.9, native."
)
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel size.")
@click.option("--act", type=click.Choice(ACTIVATIONS), help="Activations' type.  [default: the model's]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, checkpoint: Path, arch: tuple[str, ...], tp: int, act: str | None, as_json: bool) -> None:
    """Show how a checkpoint's linear layers are stored, and which kernels serve them.

    CHECKPOINT is a Hugging Face folder with config.json and safetensors files. Only the headers of those are
    read; what they hold is checked against each other and against the config. Exit code 2 if they do not fit.
    """
    from ..arch import parse_list
    from ..driver import native_archs
    from .columns import fold

    found = _inspect(checkpoint, parse_list(arch, native_archs), tp, act)
    click.echo(_to_json(found) if as_json else "\n\n".join("\n".join(fold(part)) for part in _show(found)))


def _inspect(folder: Path, archs: Sequence[Arch], tp: int, act: str | None) -> _Found:
    from .. import checkpoint as checkpoints
    from ..dtypes import dtype
    from ..models import PACKED_METHOD
    from ..plan import DEFAULT_MAX_TOKENS

    checkpoint = checkpoints.read_checkpoint(folder)
    declared = checkpoints.read_declared(checkpoint.config)
    if declared.method == PACKED_METHOD:
        linears = checkpoints.list_linears(checkpoints.open_packed(folder))
    else:
        linears = checkpoints.read_linears(checkpoint.tensors.values(), declared)
    model, why = checkpoints.read_model(checkpoint, declared)
    if model is not None:
        checkpoints.check_sizes(model, linears, declared)
    gemms = checkpoints.list_gemms(model, linears, declared, checkpoint.config, tp)
    uses: list[Use] = []
    if any(one.stored.format != checkpoints.UNQUANTIZED for one in linears.values()):
        uses = checkpoints.serve(
            gemms,
            linears,
            declared,
            checkpoint.config,
            archs=archs,
            tp=tp,
            act=dtype(act) if act else None,
            max_tokens=DEFAULT_MAX_TOKENS,
        )
    else:
        why = "no layer is quantized; our kernels serve quantized layers"
    names = {module: gemm.name for gemm in gemms for module in gemm.modules}
    rows = checkpoints.fold(linears.values(), names, declared.quantization)
    inputs = checkpoints.count_inputs(linears.values(), declared.quantization)
    return _Found(checkpoint, rows, uses, inputs, why, tp, DEFAULT_MAX_TOKENS)


def _show(found: _Found) -> Iterator[Iterator[str]]:
    """Yield the parts of the text, each as lines."""
    files = len(found.checkpoint.files)
    name = found.checkpoint.folder.resolve().name
    yield iter([f"{name}: {len(found.checkpoint.tensors)} tensors in {files} file{'s' * (files > 1)}"])
    if found.rows:
        yield _show_rows(found.rows)
    alike: dict[tuple[Answer, ...], list[Use]] = {}
    for use in found.uses:
        alike.setdefault(use.answers, []).append(use)
    for answers, uses in alike.items():
        yield _show_uses(uses, answers, found.tp)
    yield _show_totals(found)


def _show_rows(rows: Sequence[Row]) -> Iterator[str]:
    from .columns import align

    heading = ("linear layer", "count", "stored as", "packed", "n", "k", "experts", "group", "bytes", "GEMM")
    yield from align(
        [
            heading,
            *(
                (
                    row.name,
                    row.count,
                    f"{row.stored}{' + bias' if row.stored.bias else ''}",
                    row.packed or "-",
                    row.stored.n,
                    row.stored.k,
                    row.stored.num_experts or "-",
                    row.stored.scales,
                    row.bytes,
                    row.gemm or "-",
                )
                for row in rows
            ),
        ]
    )


def _show_uses(uses: Sequence[Use], answers: Sequence[Answer], tp: int) -> Iterator[str]:
    """Yield GEMMs that the same kernels serve, and those kernels."""
    from .columns import align

    split = f" on each of {tp} GPUs" if tp > 1 else ""
    for use in uses:
        experts = f", {use.num_experts} experts" if use.num_experts else ""
        layers = f"{use.count} layer{'s' * (use.count > 1)}"
        yield f"{use.name}: {use.n} x {use.k}{experts}{split}, {use.stored}, {layers}"
    rows = []
    for answer in answers:
        ranges: dict[str, list[str]] = {}
        for one in answer.kernels:
            tokens = f"{one.first} to {one.last}" if one.first < one.last else f"{one.first}"
            ranges.setdefault(one.kernel, []).append(tokens)
        for kernel, served in ranges.items():
            unit = "token" if served == ["1"] else "tokens"
            rows.append((f"    {answer.arch}", kernel, f"{', '.join(served)} {unit}"))
        if answer.why:
            rows.append((f"    {answer.arch}", "no kernel", answer.why))
    yield from align(rows)


def _show_totals(found: _Found) -> Iterator[str]:
    sizes = found.bytes
    count = sum(row.count for row in found.rows)
    yield (
        f"{count} linear layers; {_megabytes(sizes['quantized'])} MB quantized, "
        f"{_megabytes(sizes['unquantized'])} MB not, {_megabytes(sizes['other'])} MB other tensors, "
        f"{_megabytes(sizes['total'])} MB in all"
    )
    if found.uses:
        served = sum(all(answer.kernels for answer in use.answers) for use in found.uses)
        yield f"{served} of {len(found.uses)} GEMMs served for 1 to {found.max_tokens} tokens"
    yield from (f"note: {note}" for note in found.notes)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _to_json(found: _Found) -> str:
    import msgspec

    value = {
        "checkpoint": str(found.checkpoint.folder),
        "files": [file.name for file in found.checkpoint.files],
        "tensors": len(found.checkpoint.tensors),
        "tp": found.tp,
        "max_tokens": found.max_tokens,
        "layers": [
            {
                "name": row.name,
                "count": row.count,
                "format": row.stored.format,
                "bits": row.stored.bits,
                "packed": row.packed or None,
                "n": row.stored.n,
                "k": row.stored.k,
                "num_experts": row.stored.num_experts,
                "scale_block": row.stored.block,
                "bias": row.stored.bias,
                "bytes": row.bytes,
                "gemm": row.gemm or None,
            }
            for row in found.rows
        ],
        "gemms": [
            {
                "name": use.name,
                "n": use.n,
                "k": use.k,
                "num_experts": use.num_experts,
                "stored": use.stored,
                "count": use.count,
                "targets": [
                    {"arch": str(answer.arch), "kernels": answer.kernels, "why_none": answer.why or None}
                    for answer in use.answers
                ],
            }
            for use in found.uses
        ],
        "bytes": found.bytes,
        "notes": found.notes,
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
