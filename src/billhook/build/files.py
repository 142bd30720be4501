"""Write files so that nobody ever sees half of one: aside first, then renamed into place.

What lies aside is called `.NAME.HOST.PID.RANDOM`. A process that was killed leaves it
behind; the next one on that host that writes to the same place removes it.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path


def write_aside(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it into place.

    Args:
        path: Where it goes; an older file is replaced.
        content: Its bytes.

    Raises:
        OSError: As the system says; then nothing is left behind and the old file stands.
    """
    remove_stale(path)
    aside = place_aside(path)
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def place_aside(path: Path) -> Path:
    """Return a new place beside `path`, which belongs to this process."""
    return path.with_name(f"{_prefix(path)}.{os.getpid()}.{secrets.token_hex(4)}")


def remove_stale(path: Path) -> None:
    """Remove what killed processes of this host left aside of `path`; what cannot be removed stays."""
    left = re.compile(re.escape(_prefix(path)) + r"\.(\d+)\.[0-9a-f]{8}")
    with suppress(OSError):
        for other in path.parent.iterdir():
            match = left.fullmatch(other.name)
            if match is None or _is_alive(int(match[1])):
                continue
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest place above it that exists.

    Args:
        path: An absolute path.
    """
    return next(place for place in (path, *path.parents) if place.exists())


def _prefix(path: Path) -> str:
    return f".{path.name[:32]}.{platform.node()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's process
        return True
    return True
