"""`billhook vllm`: let a vLLM source tree's build generate its kernels with Billhook."""

from __future__ import annotations

from pathlib import Path

import click

from ..vllm import tree as trees
from ..vllm.job import Narrowing
from .vllm_options import PATH, narrowing_options

_TREE = click.option(
    "--tree", "root", required=True, type=PATH, help="The topmost folder of a vLLM source tree."
)


@click.group()
def command() -> None:
    """Install our generators into a vLLM source tree, or remove them."""


@command.command(short_help="Let the tree's build generate its kernels with Billhook.")
@_TREE
@narrowing_options
def install(*, root: Path, narrowing: Narrowing) -> None:
    """Replace the tree's generator scripts by launchers that take the same command line.

    What they replace is kept beside them. Billhook must be installed for the Python that builds the tree.
    With MODEL or options that narrow, the build generates only the kernels that those requests reach; install
    again to change them.
    """
    tree = trees.recognise(root)
    _report(tree, trees.install(tree, narrowing), "installed", "already installed")


@command.command()
@_TREE
def remove(root: Path) -> None:
    """Put the tree's own generator scripts back; files that were generated stay."""
    tree = trees.recognise(root)
    _report(tree, trees.remove(tree), "put back", "not installed")


@command.command(short_help="Tell the release, and whose scripts the build runs.")
@_TREE
def status(root: Path) -> None:
    """Tell the tree's release, and whose generator scripts its build runs."""
    tree = trees.recognise(root)
    click.echo(f"{root}: vLLM {tree.release.release}")
    for script in tree.scripts:
        click.echo(f"  {script.path.relative_to(root)}: {tree.state(script)}")


def _report(tree: trees.Tree, changed: list[Path], done: str, nothing: str) -> None:
    for path in changed:
        click.echo(f"{done}: {path.relative_to(tree.root)}")
    if not changed:
        click.echo(f"{nothing}: {tree.root} (vLLM {tree.release.release}) is as it was")
