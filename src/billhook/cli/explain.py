"""`billhook explain`: tell which kernel serves a problem, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import InputError, UnsupportedError
from .options import ACTIVATIONS, multiprocessors_option, read_targets, rules_option

if TYPE_CHECKING:
    from ..arch import Arch
    from ..catalog import Catalog
    from ..config import Problem
    from ..select import Choice


@click.command()
@click.option("--m", type=int, required=True, help="Rows of A; with --model: tokens of the step.")
@click.option("--n", type=int, help="Output features.")
@click.option("--k", type=int, help="Input features.")
@click.option("--format", "weights", help="Weights: u4b8, u4, u8b128, u8, fp8, mxfp8 ...  [default: u4b8]")
@click.option("--group-size", type=int, help="Weights that share a scale; -1: per channel.  [default: usual]")
@click.option("--act", type=click.Choice(ACTIVATIONS), help="Activations.  [default: bf16, the model's]")
@click.option("--output", type=click.Choice(["f16", "bf16"]), help="Output.  [default: as --act, or bf16]")
@click.option("--experts", type=int, help="Experts of an MoE layer.")
@click.option("--top-k", type=int, help="Experts that each row visits.")
@click.option("--model", type=click.Path(path_type=Path), help="Take a layer of this config.json instead.")
@click.option("--layer", help="The layer's name, such as qkv, gate_up or w13.")
@click.option("--tp", type=click.IntRange(1), help="The model's tensor-parallel size.  [default: 1]")
@click.option("--arch", default="9.0a", show_default=True, help="GPU targets: 9.0a, 8.0,8.9, native.")
@multiprocessors_option
@rules_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/plan-json.md).")
def command(
    *,
    m: int,
    n: int | None,
    k: int | None,
    weights: str | None,
    group_size: int | None,
    act: str | None,
    output: str | None,
    experts: int | None,
    top_k: int | None,
    model: Path | None,
    layer: str | None,
    tp: int | None,
    arch: str,
    multiprocessors: int | None,
    rules: str,
    as_json: bool,
) -> None:
    """Tell which kernel serves a problem, and why each other candidate does not.

    The problem is given by --n and --k, or as a layer of a model by --model and --layer.
    """
    from ..select import select
    from .columns import fold

    shape = {
        "--n": n,
        "--k": k,
        "--format": weights,
        "--group-size": group_size,
        "--output": output,
        "--experts": experts,
        "--top-k": top_k,
    }
    if model is not None:
        _refuse(shape, "cannot be given with --model, which has the layers' shapes")
        problem = _layer_problem(model, layer, tp or 1, m, act)
    else:
        _refuse({"--layer": layer, "--tp": tp}, "needs --model")
        problem = _shape_problem(
            m=m,
            n=n,
            k=k,
            weights=weights,
            group_size=group_size,
            act=act,
            output=output,
            experts=experts,
            top_k=top_k,
        )
    choices = []
    archs, catalog = read_targets(arch, multiprocessors, rules)
    for target in archs:
        try:
            choices.append(select(problem, target, catalog))
        except UnsupportedError:
            if not as_json:
                click.echo("\n".join(fold(_show_refusals(problem, target, catalog))))
            raise
    click.echo(_to_json(choices) if as_json else "\n\n".join("\n".join(fold(_show(one))) for one in choices))


def _refuse(options: Mapping[str, int | str | None], why: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{given[0]} {why}")


def _layer_problem(model: Path, name: str | None, tp: int, tokens: int, act: str | None) -> Problem:
    from ..dtypes import dtype
    from ..models import layers, load_model

    found = {layer.name: layer for layer in layers(load_model(model), tp, dtype(act) if act else None)}
    if name is None or name not in found:
        got = "nothing" if name is None else repr(name)
        raise InputError(f"--layer must be one of {', '.join(found)} (got {got})")
    return found[name].problem(tokens)


def _shape_problem(
    *,
    m: int,
    n: int | None,
    k: int | None,
    weights: str | None,
    group_size: int | None,
    act: str | None,
    output: str | None,
    experts: int | None,
    top_k: int | None,
) -> Problem:
    from ..config import GemmTypes, Problem
    from ..dtypes import BF16, dtype
    from ..formats.packed import find_format

    if n is None or k is None:
        raise InputError("give --n and --k, or --model and --layer")
    a, held = dtype(act or "bf16"), find_format(weights or "u4b8")
    c = dtype(output) if output else (a if a.bits == 16 else BF16)
    return Problem(
        m=m,
        n=n,
        k=k,
        types=GemmTypes(a, held.weight, held.scale_type(c), c),
        group_size=held.group_sizes[0] if group_size is None else group_size,
        num_experts=experts or 0,
        top_k=top_k or 0,
    )


def _show(choice: Choice) -> Iterator[str]:
    from ..catalog import Shape
    from ..select import describe
    from .columns import align

    yield f"{describe(choice.problem)}, on {choice.arch}"
    yield ""
    yield f"served by  {choice.config}"
    yield f"because    {choice.reason}"
    yield ""
    rejected = ((Shape.of(one.config), one.why_not) for one in choice.rejected)
    yield from align([("not taken", "why"), *rejected])


def _show_refusals(problem: Problem, arch: Arch, catalog: Catalog) -> Iterator[str]:
    from ..catalog import Shape
    from ..select import candidates, describe

    yield f"{describe(problem)}, on {arch}"
    yield ""
    tiles: dict[str, list[str]] = {}
    for config, why in candidates(problem, arch, catalog):
        tiles.setdefault(why or "could serve", []).append(str(Shape.of(config)))
    for why, refused in tiles.items():
        yield f"not taken  {', '.join(refused)}"
        yield f"why        {why}"


def _to_json(choices: Sequence[Choice]) -> str:
    import msgspec

    value = [
        {
            "arch": str(choice.arch),
            "kernel": choice.config.name,
            "reason": choice.reason,
            "rejected": [{"kernel": one.config.name, "why": one.why_not} for one in choice.rejected],
        }
        for choice in choices
    ]
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
