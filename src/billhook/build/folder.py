"""Write a whole folder so that nobody ever sees half of it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from .files import place_aside, remove_stale

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def fill_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    """Write files beside `target`, then put them in its place at once.

    On Linux the old and the new folder change places in one step. Elsewhere the old one
    is moved aside first: a process killed in between leaves it whole, under a hidden name.

    Args:
        target: An absent or existing folder, absolute; what it held before is deleted.
        contents: Path inside the folder -> content.

    Raises:
        OSError: As the system says; then `target` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    aside = place_aside(target)
    try:
        for path, content in contents.items():
            file = aside / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        _swap(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; afterwards `new` is gone or holds what `target` held."""
    try:
        new.rename(target)  # works where `target` is absent or empty
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(new, target):
        return
    old = new.with_name(f"{new.name}.old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    old.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places (renameat2); False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # absent from C libraries before 2018
    if rename is None:
        return False
    failed: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return failed == 0
