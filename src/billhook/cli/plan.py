"""`billhook plan`: show which kernels a model needs, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from .options import Request, layer_name, plan_request, request_options

if TYPE_CHECKING:
    from ..models import Layer
    from ..plan import Plan, PlannedKernel


class _ByTarget(click.Command):
    """Leaves the plans of foreign source trees (`--target vllm-...`) to their own command."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if any(arg.partition("=")[0] == "--target" for arg in args):
            from .plan_vllm import command as plan_vllm

            return plan_vllm.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_ByTarget)
@request_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON (docs/plan-json.md).")
def command(*, request: Request, as_json: bool) -> None:
    """Show which kernels MODEL needs for every token count, and why.

    MODEL is a Hugging Face config.json, or a folder that holds one. Nothing is compiled or written.
    With --target, such as --target vllm-0.33: what a narrowed build of that source tree keeps
    (see `billhook plan --target vllm-0.33 --help`).
    """
    from ..plan import to_json
    from .columns import fold

    _, plan = plan_request(request)
    click.echo(to_json(plan) if as_json else "\n\n".join("\n".join(fold(part)) for part in _show(plan)))


def _show(plan: Plan) -> Iterator[Iterator[str]]:
    """Yield the parts of the text, each as lines."""
    for model, layers in groupby(plan.layers, key=lambda layer: layer.model):
        yield _show_layers(f"{model}, for 1 to {plan.max_tokens} tokens", list(layers))
    one_model = len({layer.model for layer in plan.layers}) == 1
    names = {layer.id: layer_name(layer.id, one_model=one_model) for layer in plan.layers}
    for arch, kernels in groupby(plan.kernels, key=lambda kernel: kernel.arch):
        planned = list(kernels)
        yield iter([f"{len(planned)} kernels for {arch}"])
        yield from (_show_kernel(kernel, names) for kernel in planned)
    if plan.notes:
        yield (f"note: {note}" for note in plan.notes)


def _show_layers(title: str, layers: Sequence[Layer]) -> Iterator[str]:
    from .columns import align

    yield title
    heading = ("GEMM", "n", "k", "group", "experts", "top_k", "count", "types")
    rows = [
        (
            layer_name(layer.id, one_model=True),
            layer.n,
            layer.k,
            layer.group_size if layer.group_size > 0 else "channel",
            layer.num_experts or "-",
            layer.top_k or "-",
            layer.count,
            layer.types + (" + bias" if layer.bias else ""),
        )
        for layer in layers
    ]
    yield from align([heading, *rows])


def _show_kernel(kernel: PlannedKernel, names: Mapping[str, str]) -> Iterator[str]:
    yield kernel.name
    for reason in kernel.reason.split(" | "):
        yield f"    why     {reason}"
    layers: dict[tuple[int, int], list[str]] = {}
    for need in kernel.needed_by:
        layers.setdefault((need.first, need.last), []).append(names[need.layer])
    for (first, last), named in layers.items():
        tokens = f"{first} to {last} tokens" if first < last else f"{first} token{'s' * (first > 1)}"
        yield f"    serves  {tokens} of {', '.join(named)}"
