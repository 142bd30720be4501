"""The documented functions and command lines of the generator scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..emit.writer import Changes, remove
from ..errors import BillhookError, InputError
from .generate import generate, originals
from .job import EVERYTHING, Job, Narrowing
from .release import load_release
from .targets import parse_targets

RELEASE = "0.16"  # the release that the documents describe


def generate_new_kernels(
    architectures: str,
    folder: str | Path,
    release: str = RELEASE,
    family: str = "marlin-moe",
    narrowing: Narrowing = EVERYTHING,
) -> Changes:
    """Write the `.cu` files and `kernel_selector.h` for a list of targets, and remove stale ones.

    Args:
        architectures: Such as "80,89" or "8.0;9.0a;12.0+PTX", or "native".
        folder: Where the files go.
        release: The vLLM release whose tree the folder is for.
        family: "marlin-moe" or "marlin".
        narrowing: Which requests the kernels must serve.

    Returns:
        What changed; files whose text is the same keep their times.

    Raises:
        ArchError: The list is empty or a target is wrong.
        InputError: The folder, the release or the narrowing is wrong.
        StorageError: A file cannot be read or written; nothing has changed then.
    """
    archs = parse_targets(architectures)
    return generate(Job(family, load_release(release), archs, narrowing=narrowing), Path(folder))


def remove_old_kernels(folder: str | Path, release: str = RELEASE, family: str = "marlin-moe") -> Changes:
    """Remove the generated files of a folder and their manifest, and nothing else.

    Args:
        folder: Where they are.
        release: The vLLM release whose own generator may have written them.
        family: "marlin-moe", "marlin" or "machete".

    Returns:
        What was removed.

    Raises:
        InputError: The release or the family is wrong.
        StorageError: A file cannot be read or removed; nothing has changed then.
    """
    return remove(Path(folder), originals(Job(family, load_release(release))))


def run_script(
    family: str,
    arguments: Sequence[str],
    script: Path,
    release: str = RELEASE,
    narrowing: Narrowing = EVERYTHING,
) -> int:
    """Run a documented command line.

    It is `generate_kernels.py ARCHS [OUT_DIR]` or, for Machete, `generate.py [OUT_DIR]`.

    Args:
        family: What the script writes.
        arguments: What follows the script's name.
        script: The script; without OUT_DIR files go beside it, Machete's into `generated/` beside it.
        release: The vLLM release whose tree receives the files.
        narrowing: Which requests the kernels must serve.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input; the last two with a message on stderr.
    """
    needed = () if family == "machete" else ("ARCHS",)
    usage = f"usage: {script.name} {' '.join((*needed, '[OUT_DIR]'))}"
    if needed:
        usage += "\n  ARCHS: such as 80,89 or 8.0;9.0a;12.0+PTX, or native"
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage)
        return 0
    try:
        if not len(needed) <= len(arguments) <= len(needed) + 1:
            print(usage, file=sys.stderr)
            raise InputError(f"expected {' and '.join((*needed, 'at most OUT_DIR'))}")
        folder = _folder(arguments[len(needed) :], script, family)
        if needed:
            changes = generate_new_kernels(arguments[0], folder, release, family, narrowing)
        else:
            changes = generate(Job(family, load_release(release), narrowing=narrowing), folder)
    except BillhookError as error:
        print(f"{script.name}: error: {error}", file=sys.stderr)
        return error.exit_code
    print(summary(changes, folder))
    return 0


def _folder(given: Sequence[str], script: Path, family: str) -> Path:
    """Return OUT_DIR, or where files go without."""
    if not given:
        beside = script.resolve().parent
        return beside / "generated" if family == "machete" else beside
    if not given[0] or given[0].startswith("-"):
        raise InputError(f"OUT_DIR is {given[0]!r}, which names no folder; write ./NAME, or leave it out")
    return Path(given[0])


def summary(changes: Changes, folder: Path) -> str:
    """Say in one line what happened to a folder."""
    counts = {
        "new": changes.added,
        "changed": changes.changed,
        "removed": changes.removed,
        "unchanged": changes.unchanged,
    }
    return f"{folder}: " + ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
