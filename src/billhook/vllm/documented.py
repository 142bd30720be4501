"""The documented command lines and functions of the Marlin generator scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..emit.writer import Changes, remove
from ..errors import BillhookError
from .generate import generate, originals
from .job import Job
from .release import load_release
from .targets import parse_targets

RELEASE = "0.16"  # the release that the documents describe


def generate_new_kernels(
    architectures: str, folder: Path, release: str = RELEASE, family: str = "marlin-moe"
) -> Changes:
    """Write the `.cu` files and `kernel_selector.h` for a list of targets, and remove stale ones.

    Args:
        architectures: Such as "80,89" or "8.0;9.0a;12.0+PTX", or "native".
        folder: Where the files go.
        release: The vLLM release whose tree the folder is for.
        family: "marlin-moe" or "marlin".

    Returns:
        What changed; files whose text is the same keep their times.

    Raises:
        ArchError: The list is empty or a target is wrong.
        InputError: The folder or the release is wrong.
        StorageError: A file cannot be read or written; nothing has changed then.
    """
    return generate(Job(family, load_release(release), parse_targets(architectures)), folder)


def remove_old_kernels(folder: Path, release: str = RELEASE, family: str = "marlin-moe") -> Changes:
    """Remove the generated `.cu` files and `kernel_selector.h` of a folder, and nothing else.

    Args:
        folder: Where they are.
        release: The vLLM release whose own generator may have written them.
        family: "marlin-moe" or "marlin".

    Raises:
        StorageError: A file cannot be read or removed; nothing has changed then.
    """
    return remove(folder, originals(Job(family, load_release(release))))


def run_marlin_script(
    arguments: Sequence[str], script: Path, release: str = RELEASE, family: str = "marlin-moe"
) -> int:
    """Run the documented command line `generate_kernels.py ARCHS [OUT_DIR]`.

    Args:
        arguments: What follows the script's name.
        script: The script; without OUT_DIR files go beside it.
        release: The vLLM release whose tree receives the files.
        family: "marlin-moe" or "marlin".

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input; the last two with a message on stderr.
    """
    usage = f"usage: {script.name} ARCHS [OUT_DIR]\n  ARCHS: such as 80,89 or 8.0;9.0a;12.0+PTX, or native"
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage)
        return 0
    if not 1 <= len(arguments) <= 2:
        print(f"{usage}\n{script.name}: error: expected ARCHS and at most OUT_DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[1]) if len(arguments) == 2 else script.resolve().parent
    try:
        changes = generate_new_kernels(arguments[0], folder, release, family)
    except BillhookError as error:
        print(f"{script.name}: error: {error}", file=sys.stderr)
        return error.exit_code
    print(summary(changes, folder))
    return 0


def summary(changes: Changes, folder: Path) -> str:
    """Say in one line what happened to a folder."""
    counts = {
        "new": changes.added,
        "changed": changes.changed,
        "removed": changes.removed,
        "unchanged": changes.unchanged,
    }
    return f"{folder}: " + ", ".join(f"{len(names)} {word}" for word, names in counts.items() if names)
