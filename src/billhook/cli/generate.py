"""`billhook generate`: write a vLLM tree's generated kernel files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..emit.writer import Changes
from ..errors import InputError, StorageError
from ..vllm.documented import summary
from ..vllm.generate import depfile, generate
from ..vllm.job import FAMILIES, SELECTORS, Job, Narrowing, family
from ..vllm.release import ACTIVATIONS, Release, load_release, releases
from ..vllm.targets import parse_targets

_TARGETS = [*(f"vllm-{number}" for number in releases()), "vllm"]


@click.command(short_help="Write a vLLM source tree's generated kernel files.")
@click.option(
    "--target", required=True, type=click.Choice(_TARGETS), help="The release; `vllm`: ask the tree."
)
@click.option("--tree", type=click.Path(path_type=Path), help="A vLLM source tree; files go where it builds.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder for the files of one family.")
@click.option("--family", "families", multiple=True, help=f"{', '.join(FAMILIES)}; with --tree: all.")
@click.option("--arch", "targets", multiple=True, help="GPU targets, such as 8.0,8.9,9.0a; not for machete.")
@click.option("--selector", type=click.Choice(SELECTORS), default="chain", help="Form of kernel_selector.h.")
@click.option("--models", multiple=True, type=click.Path(path_type=Path), help="Keep what this config needs.")
@click.option("--formats", multiple=True, help="Keep these weight formats.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Keep what this many tokens can reach.")
@click.option(
    "--act", "activations", multiple=True, help=f"Keep these activations: {', '.join(ACTIVATIONS)}."
)
@click.option("--group-size", "group_sizes", multiple=True, type=int, help="Keep these; -1: channel scales.")
@click.option("--qqq", is_flag=True, help="Add Machete's types with 8-bit activations.")
@click.option("--heuristic", type=click.Path(path_type=Path), help="Machete schedule rules from a TOML file.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if something would change.")
@click.option("--list", "only_list", is_flag=True, help="Write nothing; print the files' names.")
@click.option(
    "--depfile", "depfile_path", type=click.Path(path_type=Path), help="Write a Makefile rule here."
)
def command(
    *,
    target: str,
    tree: Path | None,
    out: Path | None,
    families: tuple[str, ...],
    targets: tuple[str, ...],
    selector: str,
    models: tuple[Path, ...],
    formats: tuple[str, ...],
    max_tokens: int | None,
    activations: tuple[str, ...],
    group_sizes: tuple[int, ...],
    qqq: bool,
    heuristic: Path | None,
    check: bool,
    only_list: bool,
    depfile_path: Path | None,
) -> int:
    """Write the kernel instantiations, selectors and dispatch files of a vLLM release.

    Either --out names a folder for one --family, or --tree a vLLM source tree. Files
    that do not change are not touched, stale ones are removed. Options that take
    several values may be given again, or separate them by commas.
    """
    release, places = _places(target, tree, out, _split(families))
    if depfile_path is not None and len(places) != 1:
        raise InputError("--depfile is for one family; name it with --family")
    narrowing = Narrowing(models, _split(formats), max_tokens, _split(activations), group_sizes)
    stale = False
    for name, folder in places.items():
        if name == "machete":
            job = Job(name, release, narrowing=narrowing, qqq=qqq, heuristic=heuristic)
        elif targets:
            job = Job(name, release, parse_targets(targets), selector, narrowing)
        else:
            raise InputError(f"family {name} needs --arch, such as --arch 8.0,8.9,9.0a")
        if only_list:
            click.echo("\n".join(str(folder / file) for file in family(name).names(job)))
            continue
        changes = generate(job, folder, check)
        _report(changes, folder, check)
        stale |= check and bool(changes)
        if depfile_path is not None:
            _write_depfile(depfile_path, depfile(job, folder))
    return int(stale)


def _places(
    target: str, tree: Path | None, out: Path | None, families: tuple[str, ...]
) -> tuple[Release, dict[str, Path]]:
    """Return the release, and family -> folder to write into."""
    for name in families:
        family(name)  # refuses names that do not exist
    number = target.removeprefix("vllm").removeprefix("-")
    if tree is not None and out is None:
        from ..vllm.tree import recognise

        found = recognise(tree)
        if number and number != found.release.release:
            raise InputError(f"{tree} is a tree of vLLM {found.release.release}, not of {number}")
        return found.release, {name: found.folder(name) for name in families or FAMILIES}
    if out is None or tree is not None:
        raise InputError("say where to write: either --out DIR with one --family, or --tree PATH")
    if not number:
        raise InputError(f"--target vllm needs --tree; with --out name a release: {', '.join(_TARGETS[:-1])}")
    if len(families) != 1:
        raise InputError(f"--out is the folder of one --family: {', '.join(FAMILIES)}")
    return load_release(number), {families[0]: out}


def _report(changes: Changes, folder: Path, check: bool) -> None:
    if not check:
        click.echo(summary(changes, folder))
    else:
        planned = {"add": changes.added, "change": changes.changed, "remove": changes.removed}
        for verb, names in planned.items():
            for name in names:
                click.echo(f"would {verb} {folder / name}")
    for name in changes.kept:
        click.echo(f"kept {folder / name}: it has a generated file's name, but is not one", err=True)


def _write_depfile(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text)
        aside.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _split(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for value in values for word in value.replace(",", " ").split())
