"""The content-addressed store of compiled kernels.

One file per entry, `kernels/KEY[:2]/KEY`: 32 bytes SHA-256 of the rest, then the rest
as MessagePack. A file is written aside and renamed into place, so readers see a
whole entry or none, and two builds may write the same entry at once. An entry
whose hash does not fit is as good as absent.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import StorageError
from .files import write_aside
from .nvrtc import Compiled

_FORMAT = 1
_DIGEST_BYTES = 32


def cache_folder() -> Path:
    """Return `$BILLHOOK_CACHE_DIR`, else `$XDG_CACHE_HOME/billhook`, else `~/.cache/billhook`."""
    if chosen := os.environ.get("BILLHOOK_CACHE_DIR"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification tells readers to ignore relative paths.
    return (Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()) / "billhook"


def cache_key(
    text: str, headers: dict[str, str], options: tuple[str, ...], compiler: str, *, ptx: bool
) -> str:
    """Return the key of a compilation: a hash over everything that can change its result.

    Args:
        text: The source.
        headers: Every included header: name -> content.
        options: Compiler options.
        compiler: The compiler's name and full version.
        ptx: Whether PTX is kept beside the machine code.

    Returns:
        64 hexadecimal digits. No path and no time enters.
    """
    content = (_FORMAT, text, sorted(headers.items()), options, compiler, ptx)
    return hashlib.sha256(msgspec.msgpack.encode(content)).hexdigest()


@dataclass(frozen=True)
class Cache:
    """A folder of compiled kernels.

    Args:
        folder: Where it lies; made when first written to.
    """

    folder: Path

    def path(self, key: str) -> Path:
        """Return the file that holds, or would hold, the entry of `key`."""
        return self.folder / "kernels" / key[:2] / key

    def get(self, key: str) -> Compiled | None:
        """Return the entry of `key`; None if there is none or it is damaged.

        Raises:
            StorageError: The entry exists but cannot be read.
        """
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(_refusal("read", path, error)) from error
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        return msgspec.msgpack.decode(body, type=Compiled)

    def put(self, key: str, compiled: Compiled) -> None:
        """Store an entry; an entry of the same key is replaced.

        Raises:
            StorageError: The folder cannot be written (full, read-only, not a folder).
        """
        path = self.path(key)
        body = msgspec.msgpack.encode(compiled)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            raise StorageError(_refusal("write", path, error)) from error

    def measure(self) -> tuple[int, int]:
        """Return the number of entries and their size in bytes.

        Raises:
            StorageError: The folder cannot be read.
        """
        try:
            sizes = [path.stat().st_size for path in self.folder.glob("kernels/??/*") if path.is_file()]
        except OSError as error:
            raise StorageError(_refusal("read", self.folder, error)) from error
        return len(sizes), sum(sizes)


def _refusal(verb: str, path: Path, error: OSError) -> str:
    return (
        f"cannot {verb} the kernel cache: {path}: {error.strerror or error}; free space or mend its "
        "permissions, or set BILLHOOK_CACHE_DIR to another folder (finished kernels are kept)"
    )
