"""`billhook bench`: measure kernels and peers side by side; report, tune and fit from records."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import BillhookError, InputError, UnsupportedError
from ..measure.timing import REST

if TYPE_CHECKING:
    from ..arch import Arch
    from ..catalog import Shape
    from ..config import GemmTypes
    from ..measure.contestant import Contestant
    from ..measure.ours import Ours
    from ..measure.record import Record
    from ..measure.workload import Workload

CONTESTANTS = ("read", "ours", "torch", "marlin", "machete", "humming")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--report", is_flag=True, help="Print the comparison tables of record FILES; needs no GPU.")
@click.option("--tune", is_flag=True, help="Print the tile rules that record FILES suggest; needs no GPU.")
@click.option("--fit", is_flag=True, help="Print the tile times that record FILES tell; needs no GPU.")
@click.option(
    "--model", "model_path", type=click.Path(path_type=Path), help="Measure the GEMMs of this config.json."
)
@click.option("--tp", default=1, show_default=True, help="Tensor-parallel size of the model.")
@click.option(
    "--shapes", multiple=True, type=click.Path(path_type=Path), help="Measure the layers of this TOML file."
)
@click.option("--shape", "shape_texts", multiple=True, metavar="NxK", help="Measure this layer.")
@click.option("--m", "counts", metavar="LIST", help="Token counts, such as 1,16,256.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="LIST",
    help="Formats of weights, such as u4b8,mxfp4, or all.  [default: u4b8, or the model's]",
)
@click.option(
    "--act",
    multiple=True,
    metavar="LIST",
    help="Activations: bf16, f16, e4m3fn, s8.  [default: bf16, or the model's]",
)
@click.option(
    "--group-size",
    "groups",
    multiple=True,
    metavar="LIST",
    help="Weights that share one scale; -1 for channel scales.  [default: the format's usual size]",
)
@click.option("--experts", default=0, help="Experts of --shape; 0 for a dense layer.")
@click.option("--top-k", default=0, help="Experts that each token visits.")
@click.option(
    "--contestants", default=",".join(CONTESTANTS), show_default=True, metavar="LIST", help="Who takes part."
)
@click.option(
    "--tile", "tiles", multiple=True, metavar="TILE", help="Also measure this tile, such as m16n128k256."
)
@click.option(
    "--all-tiles", is_flag=True, help="Also measure every legal tile: what --tune and --fit learn from."
)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(min=3), help="Timed rounds.")
@click.option(
    "--rest",
    default=REST,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Idle before a contestant, in times of the one before; 0 shows a GPU at its power limit.",
)
@click.option("--seed", default=0, show_default=True, help="Of weights, activations and routing.")
@click.option("--bandwidth", type=click.FloatRange(min=0, min_open=True), help="TB/s of the floor.")
@click.option("--tflops", type=click.FloatRange(min=0, min_open=True), help="TFLOP/s of the floor.")
@click.option("--out", type=click.Path(path_type=Path), help="Append the records to this JSONL file.")
def command(
    *,
    files: tuple[Path, ...],
    report: bool,
    tune: bool,
    fit: bool,
    model_path: Path | None,
    tp: int,
    shapes: tuple[Path, ...],
    shape_texts: tuple[str, ...],
    counts: str | None,
    formats: tuple[str, ...],
    act: tuple[str, ...],
    groups: tuple[str, ...],
    experts: int,
    top_k: int,
    contestants: str,
    tiles: tuple[str, ...],
    all_tiles: bool,
    rounds: int,
    rest: float,
    seed: int,
    bandwidth: float | None,
    tflops: float | None,
    out: Path | None,
) -> None:
    """Measure kernels and installed peers side by side, in CUDA graphs, every output checked.

    \b
    billhook bench --shapes bench/shapes/dense.toml --out bench/records/h100.jsonl
    billhook bench --model examples/models/qwen3-30b-a3b-gptq-int4 --m 1,16
    billhook bench --shape 8192x8192 --format all --m 1,8,16
    billhook bench --shape 8192x8192 --act bf16,e4m3fn,s8 --m 1024,4096
    billhook bench --report bench/records/h100.jsonl
    """
    if report or tune or fit:
        _show(files, report, tune, fit)
        return
    if files:
        raise InputError(f"{files[0]}: record files are read with --report, --tune or --fit")
    names = _names(contestants)
    workloads = _workloads(
        model_path=model_path,
        tp=tp,
        shapes=shapes,
        shape_texts=shape_texts,
        counts=counts,
        formats=formats,
        act=act,
        groups=groups,
        experts=experts,
        top_k=top_k,
    )

    from ..measure import machine, ours, run
    from ..measure import record as records
    from ..measure.roofline import peak_of

    for text in tiles:
        ours.parse_tile(text)
    device = machine.find_gpu()
    arch = _native_arch()
    fixed = _contestants(names, arch)
    described = machine.describe(device, fixed)
    peak = peak_of(described.gpu, bandwidth and bandwidth * 1e12, tflops and tflops * 1e12)
    session = run.begin(device, described, peak, rounds=rounds, rest=rest, seed=seed)
    packing = ours.Packing()
    chosen = ours.Ours(arch, packing, multiprocessors=described.sms)
    mine: list[Ours] = [chosen] if "ours" in names else []
    own = [
        [*mine, *(ours.Ours(arch, packing, shape) for shape in _tiles(workload, arch, tiles, all_tiles))]
        for workload in workloads
    ]
    everything: list[Record] = []

    def keep(found: list[Record]) -> None:
        if out is not None:
            records.append(out, found)
        everything.extend(found)
        click.echo(_line(found), err=True)

    try:
        ours.compile_ahead(list(zip(workloads, own, strict=True)))
        for workload, mine_here in zip(workloads, own, strict=True):
            run.measure(session, workload, [*mine_here, *fixed], keep)
    finally:
        _print(everything, tune=all_tiles)
    wrong = [one for one in everything if one.contestant == "ours" and one.skipped]
    if wrong:
        raise BillhookError(
            f"our kernel gave no result on {len(wrong)} problems, "
            f"the first {wrong[0].case.label}: {wrong[0].skipped}"
        )


def _show(files: tuple[Path, ...], report: bool, tune: bool, fit: bool) -> None:
    from ..measure import record

    if not files:
        raise InputError("name the record files to read, such as bench/records/h100.jsonl")
    found = list(record.read(files))
    if report:
        _print(found, tune=False)
    if tune:
        if not any(":" in one.contestant for one in found):
            raise InputError("the records hold no fixed tiles; measure with --all-tiles first")
        _print_rules(found)
    if fit:
        _print_times(found)


def _print(found: list[Record], tune: bool) -> None:
    from ..measure import report

    if found:
        click.echo(report.render(found))
    if found and tune:
        click.echo()
        _print_rules(found)


def _print_rules(found: list[Record]) -> None:
    from ..measure import tune

    click.echo(tune.render_rules(tune.choose(found)))
    for line in tune.exceptions(found):
        click.echo(line)


def _print_times(found: list[Record]) -> None:
    from ..measure import fit

    fits, losses = fit.fit(found)
    if not fits:
        raise InputError(
            "the records hold no tiles of dense layers whose times can be predicted; "
            "measure with --all-tiles, or --tile machete-m128n128k128 and others, first"
        )
    click.echo(fit.render_times(fits, losses), nl=False)


def _names(text: str) -> list[str]:
    names = _words((text,))
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown or not names:
        raise InputError(f"{text!r}: contestants are {', '.join(CONTESTANTS)}")
    return names


def _workloads(
    *,
    model_path: Path | None,
    tp: int,
    shapes: tuple[Path, ...],
    shape_texts: tuple[str, ...],
    counts: str | None,
    formats: tuple[str, ...],
    act: tuple[str, ...],
    groups: tuple[str, ...],
    experts: int,
    top_k: int,
) -> list[Workload]:
    from dataclasses import replace

    from ..measure import workload

    tokens = workload.parse_counts(counts) if counts is not None else None
    kinds = _kinds(formats, act, groups)
    found: list[Workload] = []
    if model_path is not None:
        if formats or groups or len(_words(act)) > 1:
            raise InputError(
                "--model says formats and groups itself; give --shapes or --shape with those options"
            )
        found += workload.read_model(model_path, tp, tokens, _words(act)[0] if act else None)
    for path in shapes:
        layers = [layer for types, group in kinds for layer in workload.read_shapes(path, types, group)]
        found += [replace(layer, tokens=tokens) for layer in layers] if tokens else layers
    for text in shape_texts:
        n, k = workload.parse_shape(text)
        usual = workload.MOE_TOKENS if experts else workload.DENSE_TOKENS
        for types, group in kinds:
            layer = workload.Workload(text, n, k, tokens or usual, types, group, experts, top_k)
            found.append(layer.check())
    if not found:
        raise InputError(
            "say what to measure: --shapes FILE, --shape NxK or --model CONFIG (see bench/shapes)"
        )
    return found


def _kinds(
    formats: tuple[str, ...], act: tuple[str, ...], groups: tuple[str, ...]
) -> list[tuple[GemmTypes, int]]:
    """Return the element types and group sizes to measure; those that do not exist are told and left out.

    Raises:
        InputError: A name is unknown, a size no number, or nothing is left.
    """
    from ..formats.packed import find_packed
    from ..measure.workload import gemm_types, usual_group_size
    from ..weights import FORMATS

    names, sizes = _words(formats) or ["u4b8"], _words(groups)
    wrong = next((size for size in sizes if not re.fullmatch(r"-1|[1-9]\d*", size)), None)
    if wrong is not None:
        raise InputError(f"--group-size takes numbers such as 128 or -1 for channel scales (got {wrong!r})")
    found, refused = [], []
    for activations, name in product(_words(act) or ["bf16"], FORMATS if names == ["all"] else names):
        try:
            types = gemm_types(activations, name)
        except UnsupportedError as error:
            refused.append(str(error))
            continue
        legal = find_packed(types).group_sizes
        for size in map(int, sizes or [str(usual_group_size(types))]):
            if size in legal:
                found.append((types, size))
            else:
                refused.append(f"group_size of {name} must be {' or '.join(map(str, legal))} (got {size})")
    if not found:
        raise InputError(refused[0])
    for reason in dict.fromkeys(refused):
        click.echo(f"left out: {reason}", err=True)
    return found


def _words(texts: tuple[str, ...]) -> list[str]:
    """Return the words of an option that takes lists, without repeats."""
    return list(dict.fromkeys(word for text in texts for word in text.replace(",", " ").split()))


def _native_arch() -> Arch:
    import torch

    from ..driver import native_arch

    major, minor = torch.cuda.get_device_capability()
    return native_arch((major, minor))


def _contestants(names: list[str], arch: Arch) -> list[Contestant]:
    from ..measure.peers import installed_peers
    from ..measure.read import Reader

    return [one for one in (Reader(arch), *installed_peers()) if one.name in names]


def _tiles(workload: Workload, arch: Arch, texts: tuple[str, ...], all_tiles: bool) -> list[Shape]:
    from ..measure import ours

    wanted = []
    for text in texts:
        shape, stages_given = ours.parse_tile(text)
        wanted.append(shape if stages_given else ours.fit_tile(shape, workload, arch))
    if all_tiles:
        wanted += ours.legal_tiles(workload, arch)
    return list(dict.fromkeys(wanted))


def _line(found: list[Record]) -> str:
    times = [f"{one.contestant} {one.times.median_us:.1f}" for one in found if one.times]
    return f"{found[0].case.label}: floor {found[0].floor_us:.1f}; {', '.join(times)} us"
