"""`billhook generate`: write a vLLM tree's generated kernel files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ..emit.writer import Changes
from ..errors import InputError, StorageError
from ..vllm.documented import summary
from ..vllm.generate import depfile, prepare
from ..vllm.job import FAMILIES, SELECTORS, Job, Narrowing, family
from ..vllm.release import Release
from ..vllm.targets import parse_targets
from .vllm_options import (
    PATH,
    find_release,
    find_tree,
    heuristic_option,
    narrowing_options,
    parse_families,
    qqq_option,
    target_option,
)


@click.command(short_help="Write a vLLM source tree's generated kernel files.")
@target_option
@click.option("--tree", type=PATH, help="A vLLM source tree; files go where it builds.")
@click.option("--out", type=PATH, help="A folder for the files of one family.")
@click.option("--family", "families", multiple=True, help=f"{', '.join(FAMILIES)}; with --tree: all.")
@click.option("--arch", "targets", multiple=True, help="GPU targets, such as 8.0,8.9,9.0a; not for machete.")
@click.option("--selector", type=click.Choice(SELECTORS), default="chain", help="Form of kernel_selector.h.")
@narrowing_options
@qqq_option
@heuristic_option
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if something would change.")
@click.option("--list", "only_list", is_flag=True, help="Write nothing; print the files' names.")
@click.option("--depfile", "depfile_path", type=PATH, help="Write a Makefile rule here.")
def command(
    *,
    target: str,
    tree: Path | None,
    out: Path | None,
    families: tuple[str, ...],
    targets: tuple[str, ...],
    selector: str,
    narrowing: Narrowing,
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
    release, places = _places(target, tree, out, parse_families(families))
    _refuse_idle_options(places, selector, qqq, heuristic)
    if depfile_path is not None and (len(places) != 1 or check or only_list):
        raise InputError("--depfile is for a run that writes one --family, without --check and --list")
    archs = parse_targets(targets) if targets else ()
    jobs = {}
    for name, folder in places.items():
        if name == "machete":
            jobs[folder] = Job(name, release, narrowing=narrowing, qqq=qqq, heuristic=heuristic)
        elif archs:
            jobs[folder] = Job(name, release, archs, selector, narrowing)
        else:
            raise InputError(f"family {name} needs --arch, such as --arch 8.0,8.9,9.0a")
    if only_list:
        for folder, job in jobs.items():
            click.echo("\n".join(str(folder / name) for name in family(job.family).names(job)))
        return 0
    return _check(jobs) if check else _write(jobs, depfile_path)


def _check(jobs: dict[Path, Job]) -> int:
    stale = False
    for folder, job in jobs.items():
        changes = prepare(job, folder, check=True).changes
        planned = {"add": changes.added, "change": changes.changed, "remove": changes.removed}
        for verb, names in planned.items():
            for name in names:
                click.echo(f"would {verb} {folder / name}")
        _tell_kept(changes, folder)
        stale |= bool(changes)
    return int(stale)


def _write(jobs: dict[Path, Job], depfile_path: Path | None) -> int:
    # All are prepared before one is written: what is wrong with the last must not leave the first changed.
    prepared = [prepare(job, folder) for folder, job in jobs.items()]
    rule = depfile(prepared[0].job, prepared[0].folder) if depfile_path else ""
    with _staged(depfile_path, rule):
        for one in prepared:
            changes = one.write()
            click.echo(summary(changes, one.folder))
            _tell_kept(changes, one.folder)
    return 0


def _places(
    target: str, tree: Path | None, out: Path | None, families: tuple[str, ...]
) -> tuple[Release, dict[str, Path]]:
    """Return the release, and family -> folder to write into."""
    if (tree is None) == (out is None):
        raise InputError("say where to write: either --out DIR with one --family, or --tree PATH")
    if tree is not None:
        found = find_tree(target, tree)
        return found.release, {name: found.folder(name) for name in families or FAMILIES}
    release = find_release(target)
    if out is None or len(families) != 1:
        raise InputError(f"--out is the folder of one --family: {', '.join(FAMILIES)}")
    return release, {families[0]: out}


def _refuse_idle_options(families: Iterable[str], selector: str, qqq: bool, heuristic: Path | None) -> None:
    """Refuse options that none of the families heeds."""
    if "machete" not in families and (qqq or heuristic is not None):
        raise InputError(f"{'--qqq' if qqq else '--heuristic'} is for --family machete")
    if selector != SELECTORS[0] and set(families) == {"machete"}:
        raise InputError("--selector is for --family marlin and marlin-moe")


def _tell_kept(changes: Changes, folder: Path) -> None:
    for name in changes.kept:
        click.echo(f"kept {folder / name}: it has a generated file's name, but is not one", err=True)


@contextmanager
def _staged(path: Path | None, text: str) -> Iterator[None]:
    """Write `text` aside, and put it at `path` once the body has succeeded; without a path, do nothing."""
    if path is None:
        yield
        return
    if path.is_dir():
        raise InputError(f"cannot write the depfile {path}: it is a folder")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _failures_named(path):
            aside.write_text(text)
        yield
        with _failures_named(path):
            aside.replace(path)
    finally:
        with suppress(OSError):
            aside.unlink()


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
