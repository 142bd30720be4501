"""Which headers a source includes: what the compiler is given, and what the cache key covers."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CompileError, StorageError

CUDA_ROOT = Path(__file__).resolve().parent.parent / "cuda"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)


def included_headers(text: str, root: Path = CUDA_ROOT) -> dict[str, str]:
    """Return every header that `text` includes, directly or through other headers.

    Includes are names relative to `root`, as in `#include "billhook/ptx/mma.cuh"`; an
    include under a preprocessor condition counts as included.

    Args:
        text: CUDA C++ source.
        root: The include folder.

    Returns:
        Name -> content, sorted by name.

    Raises:
        CompileError: An included header does not exist.
        StorageError: A header cannot be read.
    """
    found: dict[str, str] = {}
    pending = _INCLUDE.findall(text)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        try:
            found[name] = (root / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CompileError(f"header {name!r} is included but does not exist under {root}") from None
        except OSError as error:
            raise StorageError(f"cannot read header {root / name}: {error.strerror}") from error
        pending += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))
