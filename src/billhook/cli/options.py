"""What several commands read from their options, and the names they show for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ..errors import InputError

if TYPE_CHECKING:
    from ..models import Model
    from ..plan import Plan

Command = TypeVar("Command", bound=Callable[..., object])
ACTIVATIONS = ("f16", "bf16", "e4m3fn", "s8")

rules_option = click.option(
    "--rules",
    default="native",
    show_default=True,
    help="What chooses kernels: native, machete-0.20 (vLLM's heuristic), or a file of rules.",
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
    rules_option,
)


def request_options(command: Command) -> Command:
    """Give a command the arguments of `plan_request`."""
    for decorate in reversed(_REQUEST):
        command = decorate(command)
    return command


def plan_request(
    models: Iterable[Path],
    arch: Iterable[str],
    tp: Iterable[str],
    max_tokens: int | None,
    act: str | None,
    *,
    rules: str,
) -> tuple[list[Model], Plan]:
    """Read models and plan the kernels for them.

    Args:
        models: Config files, or their folders.
        arch: GPU targets, as `arch.parse_list` reads them.
        tp: Tensor-parallel sizes, as `parse_sizes` reads them.
        max_tokens: Serve 1 to this many tokens; the planner's default if None.
        act: One of `ACTIVATIONS`; the models' own if None.
        rules: As `vllm.machete.native.find_catalog` takes them.

    Raises:
        InputError: A value is wrong, a config cannot be read, or no kernel serves a layer.
    """
    from ..arch import parse_list
    from ..driver import native_archs
    from ..dtypes import dtype
    from ..models import load_model
    from ..plan import DEFAULT_MAX_TOKENS, make_plan
    from ..vllm.machete.native import find_catalog

    sizes = parse_sizes(tp)
    loaded = [load_model(model) for model in models]
    targets = parse_list(arch, native_archs)
    tokens = max_tokens or DEFAULT_MAX_TOKENS
    element = dtype(act) if act else None
    return loaded, make_plan(loaded, targets, tokens, sizes, element, catalog=find_catalog(rules))


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


def layer_name(layer_id: str, *, one_model: bool) -> str:
    """Return a layer's id (`MODEL/tpTP/NAME`) as tables show it: without what all have in common."""
    return layer_id.split("/", 1)[1].removeprefix("tp1/") if one_model else layer_id
