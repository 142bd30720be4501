"""Options and arguments that the commands about vLLM source trees share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import InputError
from ..vllm.job import Narrowing, family
from ..vllm.release import ACTIVATIONS, Release, load_release, releases

if TYPE_CHECKING:
    from ..vllm.tree import Tree

Returned = TypeVar("Returned")

RELEASES = [f"vllm-{number}" for number in releases()]


class _PathOption(click.Path):
    """A path; the empty text that an unset variable leaves is no path."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if not os.fspath(value):
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _PathOption(path_type=Path)

target_option = click.option(
    "--target",
    required=True,
    type=click.Choice([*RELEASES, "vllm"]),
    help="The release; `vllm`: ask the tree.",
)
qqq_option = click.option("--qqq", is_flag=True, help="Add Machete's types with 8-bit activations.")
heuristic_option = click.option("--heuristic", type=PATH, help="Machete schedule rules from a TOML file.")

_NARROWING = (
    click.argument("configs", nargs=-1, metavar="[MODEL]...", type=PATH),
    click.option("--models", multiple=True, type=PATH, help="Keep what this config needs; same as MODEL."),
    click.option(
        "--formats", multiple=True, help="Keep these weight formats; with models: in place of theirs."
    ),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Keep what this many tokens can reach."),
    click.option(
        "--act", "activations", multiple=True, help=f"Keep these activations: {', '.join(ACTIVATIONS)}."
    ),
    click.option("--group-size", "group_sizes", multiple=True, help="Keep these; -1: channel scales."),
)


def narrowing_options(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """Give a command the options that narrow a generation; it receives them as `narrowing`."""

    @functools.wraps(command)
    def call(
        *,
        configs: tuple[Path, ...],
        models: tuple[Path, ...],
        formats: tuple[str, ...],
        max_tokens: int | None,
        activations: tuple[str, ...],
        group_sizes: tuple[str, ...],
        **others: Any,
    ) -> Returned:
        narrowing = Narrowing(
            (*models, *configs),
            split(formats),
            max_tokens,
            split(activations),
            _parse_group_sizes(group_sizes),
        )
        return command(narrowing=narrowing, **others)

    for option in reversed(_NARROWING):
        call = option(call)
    return call


def split(values: Iterable[str]) -> tuple[str, ...]:
    """Return the words of option values that separate them by commas or spaces."""
    return tuple(word for value in values for word in value.replace(",", " ").split())


def parse_families(values: Iterable[str]) -> tuple[str, ...]:
    """Return the kernel families named.

    Raises:
        InputError: One does not exist; the message lists those that do.
    """
    names = split(values)
    for name in names:
        family(name)
    return names


def find_tree(target: str, root: Path) -> Tree:
    """Recognise a tree of the release that `--target` names, if it names one.

    Raises:
        InputError: No tree of a known release, or of another one.
    """
    from ..vllm.tree import recognise

    tree = recognise(root)
    if target not in ("vllm", f"vllm-{tree.release.release}"):
        raise InputError(f"{root} is a tree of vLLM {tree.release.release}, not of {target.split('-')[1]}")
    return tree


def find_release(target: str) -> Release:
    """Return the release that `--target` names.

    Raises:
        InputError: It leaves that to a tree, and none is given.
    """
    if target == "vllm":
        raise InputError(f"--target vllm needs --tree; without, name a release: {', '.join(RELEASES)}")
    return load_release(target.removeprefix("vllm-"))


def _parse_group_sizes(values: Iterable[str]) -> tuple[int, ...]:
    words = split(values)
    for word in words:
        if not word.removeprefix("-").isdecimal():
            raise InputError(f"--group-size {word} is no whole number; write one such as 128, or -1")
    return tuple(map(int, words))
