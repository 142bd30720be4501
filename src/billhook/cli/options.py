"""What several commands read from their options, and the names they show for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..arch import Arch
    from ..catalog import Catalog
    from ..models import Model, NarrowActivations
    from ..plan import Plan

ACTIVATIONS = ("f16", "bf16", "e4m3fn", "s8")

rules_option = click.option(
    "--rules",
    default="native",
    show_default=True,
    help="What chooses kernels: native, machete-0.20 (vLLM's heuristic), or a file of rules.",
)

multiprocessors_option = click.option(
    "--multiprocessors",
    type=int,
    help="Choose tiles for a GPU of so many, such as 114 (H100 PCIe).  [default: 132 (H100 SXM, H200); with "
    "--arch native this machine's]",
)

_REQUEST = (
    click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(path_type=Path)),
    click.option(
        "--arch",
        multiple=True,
        default=["9.0a"],
        show_default=True,
        help="GPU targets: 9.0a, 8.0,8.9, native.",
    ),
    click.option(
        "--tp", multiple=True, default=["1"], show_default=True, help="Tensor-parallel sizes: 1 or 1,2,4."
    ),
    click.option(
        "--max-tokens", type=click.IntRange(1), help="Serve 1 to this many tokens.  [default: 8192]"
    ),
    click.option("--act", type=click.Choice(ACTIVATIONS), help="Activations' type.  [default: the model's]"),
    click.option(
        "--narrow-activations",
        is_flag=True,
        help="8-bit activations where MODEL asks for them and kernels take them, as billhook.load with "
        "narrow_activations=True.",
    ),
    click.option(
        "--fold",
        is_flag=True,
        help="The same, and scales of groups folded into 4-bit weights beside e4m3 activations (w4a8), as "
        "billhook.load with narrow_activations='folded'.",
    ),
    click.option(
        "--unfused",
        is_flag=True,
        help="q, k and v, gate and up as GEMMs of their own, as models of billhook.load have them.",
    ),
    click.option(
        "--within",
        default="0",
        show_default=True,
        metavar="PERCENT",
        help="Keep few kernels: none serves what it is predicted to take over PERCENT longer for than the "
        "fastest.",
    ),
    multiprocessors_option,
    rules_option,
)


@dataclass(frozen=True)
class Request:
    """What shall be planned.

    Args:
        models: Config files, or their folders.
        arch: GPU targets, as `arch.parse_list` reads them.
        tp: Tensor-parallel sizes, as `parse_sizes` reads them.
        max_tokens: Serve 1 to this many tokens; the planner's default if None.
        act: One of `ACTIVATIONS`; the models' own if None.
        narrow_activations: Whether layers have 8-bit activations where models ask for them.
        fold: Whether scales are folded besides.
        unfused: Whether projections that read the same input are GEMMs of their own.
        within: How much slower than the fastest kernels may be, as `parse_percent` reads it.
        multiprocessors: Of the GPU that tiles are chosen for; those that times were measured with if None.
        rules: As `vllm.machete.native.find_catalog` takes them.
    """

    models: tuple[Path, ...]
    arch: tuple[str, ...]
    tp: tuple[str, ...]
    max_tokens: int | None
    act: str | None
    narrow_activations: bool
    fold: bool
    unfused: bool
    within: str
    multiprocessors: int | None
    rules: str

    @property
    def narrow(self) -> NarrowActivations:
        """The activations, as `billhook.load` takes them."""
        return "folded" if self.fold else self.narrow_activations


def request_options(command: Callable[..., object]) -> Callable[..., object]:
    """Give a command the arguments of a `Request`, which it gets as `request`."""

    @wraps(command)
    def call(**options: Any) -> object:
        request = Request(**{one.name: options.pop(one.name) for one in fields(Request)})
        return command(request=request, **options)

    for decorate in reversed(_REQUEST):
        call = decorate(call)
    return call


def plan_request(request: Request) -> tuple[list[Model], Plan]:
    """Read models and plan the kernels for them.

    Raises:
        InputError: A value is wrong, a config cannot be read, or no kernel serves a layer.
    """
    from ..dtypes import dtype
    from ..models import load_model
    from ..plan import DEFAULT_MAX_TOKENS, make_plan

    sizes, within = parse_sizes(request.tp), parse_percent(request.within)
    archs, catalog = read_targets(request.arch, request.multiprocessors, request.rules)
    loaded = [load_model(model) for model in request.models]
    plan = make_plan(
        loaded,
        archs,
        request.max_tokens or DEFAULT_MAX_TOKENS,
        sizes,
        dtype(request.act) if request.act else None,
        narrow_activations=request.narrow,
        fused=not request.unfused,
        within=within,
        catalog=catalog,
    )
    return loaded, plan


def read_targets(
    arch: str | Iterable[str], multiprocessors: int | None, rules: str
) -> tuple[list[Arch], Catalog]:
    """Return GPU targets and the catalog that chooses tiles for them.

    Args:
        arch: As `arch.parse_list` reads it.
        multiprocessors: What tiles are chosen for. If None: as many as this machine's GPUs have, if `native`
            is asked for and they agree, else those that times were measured with.
        rules: As `vllm.machete.native.find_catalog` takes them.

    Raises:
        InputError: A wrong target, rules that are none, or no GPU has so many multiprocessors.
    """
    from .. import driver
    from ..arch import parse_list
    from ..vllm.machete.native import find_catalog

    here: list[driver.Gpu] = []

    def native() -> list[Arch]:
        here.extend(driver.gpus())
        return [gpu.arch for gpu in here]

    archs, catalog = parse_list(arch, native), find_catalog(rules)
    counts = {gpu.sms for gpu in here}
    if multiprocessors is None and len(counts) == 1:
        (multiprocessors,) = counts
    return archs, catalog if multiprocessors is None else catalog.on(multiprocessors)


def parse_sizes(texts: Iterable[str], option: str = "--tp") -> list[int]:
    """Read positive whole numbers, separated by commas or given by repeating the option; repeats are dropped.

    Raises:
        InputError: None is given, or one is not a positive whole number.
    """
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    wrong = next((word for word in words if not word.isdecimal() or int(word) < 1), None)
    if wrong is not None or not words:
        got = "nothing" if wrong is None else repr(wrong)
        raise InputError(f"{option} takes positive whole numbers such as 1 or 1,2,4 (got {got})")
    return list(dict.fromkeys(int(word) for word in words))


def parse_percent(text: str, option: str = "--within") -> float:
    """Read a percentage from 0 to 100 as a share.

    Raises:
        InputError: Not such a number.
    """
    try:
        percent = float(text)
    except ValueError:
        percent = math.nan
    if not 0 <= percent <= 100:  # which NaN is not
        raise InputError(f"{option} takes a percentage from 0 to 100, such as 3 (got {text!r})")
    return percent / 100


def layer_name(layer_id: str, *, one_model: bool) -> str:
    """Return a layer's id (`MODEL/tpTP/NAME`) as tables show it: without what all have in common."""
    return layer_id.split("/", 1)[1].removeprefix("tp1/") if one_model else layer_id
