"""Write files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_aside(path: Path, content: bytes) -> None:
    """Write a file beside its place, then rename it into place.

    Raises:
        OSError: As the system says; then nothing is left behind and the old file stands.
    """
    aside = path.with_name(f".{path.name[:32]}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
