"""Write safetensors files whose tensors come one by one, in any order; a file is whole or not there.

It is written aside at its full length, forced to the disk, and then renamed into place.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..build.files import place_aside, remove_stale
from ..errors import WeightError
from .data import read_chunks
from .header import BITS, Tensor

_CHUNK = 1 << 24
_ALIGNMENT = 64  # of the data: that of the longest vector load, and of a cache line


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written.

    Args:
        name: Its name.
        dtype: The format's name of the element type.
        shape: Its dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of data."""
        return int(np.prod(self.shape, dtype=np.int64)) * BITS[self.dtype] // 8


class Shard:
    """A safetensors file that is being written; several threads may give it tensors.

    Args:
        descriptor: The file, open for writing.
        places: Where each tensor goes, by name.
    """

    def __init__(self, descriptor: int, places: Mapping[str, Tensor]) -> None:
        self._descriptor = descriptor
        self._places = places
        self._left = {name: place.bytes for name, place in places.items()}

    def put(self, name: str, array: npt.NDArray[Any], part: int = 0, parts: int = 1) -> None:
        """Write a tensor, or one of the equal parts of its first axis.

        Args:
            name: Its name.
            array: The data.
            part: Which part it is.
            parts: How many there are.

        Raises:
            WeightError: It has another number of bytes than was planned.
        """
        place, data = self._places[name], np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if data.size * parts != place.bytes:
            raise WeightError(f"tensor {name} has {data.size} bytes; {place} takes {place.bytes // parts}")
        _write(self._descriptor, data.data, place.begin + part * data.size)
        self._left[name] -= data.size

    def copy(self, tensor: Tensor) -> None:
        """Copy a tensor of another file under the same name.

        Raises:
            WeightError: The other file cannot be read, or has become shorter.
        """
        at = self._places[tensor.name].begin
        for data in read_chunks(tensor):
            _write(self._descriptor, memoryview(data), at)
            at += len(data)
        self._left[tensor.name] = 0

    def check_whole(self) -> None:
        """Refuse to be done before every tensor is there.

        Raises:
            WeightError: One is missing.
        """
        missing = [name for name, left in self._left.items() if left]
        if missing:
            raise WeightError(f"tensor {missing[0]} was planned, but not written")


@contextmanager
def open_shard(file: Path, planned: Iterable[Planned]) -> Iterator[Shard]:
    """Give a file to fill; when all is well it is put in place, else nothing is left of it.

    Args:
        file: Where it goes; an older file is replaced.
        planned: Its tensors.

    Raises:
        OSError: The system refuses, such as for lack of space, which is reserved first.
    """
    header, places = _lay_out(file, planned)
    end = max((place.end for place in places.values()), default=len(header))
    remove_stale(file)
    aside = place_aside(file)
    descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        try:
            os.posix_fallocate(descriptor, 0, end)
            _write(descriptor, memoryview(header), 0)
            shard = Shard(descriptor, places)
            yield shard
            shard.check_whole()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        aside.replace(file)
        sync_folder(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_durable(file: Path, content: bytes) -> None:
    """Write a small file aside, force it to the disk and rename it into place.

    Raises:
        OSError: As the system says; then the old file stands.
    """
    remove_stale(file)
    aside = place_aside(file)
    try:
        with aside.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
        sync_folder(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(file: Path) -> str:
    """Return the size and the CRC-32 of a file's content: what tells a whole file from a damaged one.

    A cryptographic hash would take several times as long, against attacks that nobody makes on such a folder.

    Raises:
        OSError: It cannot be read.
    """
    size = crc = 0
    with file.open("rb") as stream:
        while data := stream.read(_CHUNK):
            size, crc = size + len(data), zlib.crc32(data, crc)
    return f"{size}-{crc:08x}"


def _lay_out(file: Path, planned: Iterable[Planned]) -> tuple[bytes, dict[str, Tensor]]:
    """Return the header with its length, and the place of each tensor.

    Tensors of whole units of alignment come first, so that they are aligned in a mapped file.
    """
    ordered = sorted(planned, key=lambda one: (one.bytes % _ALIGNMENT != 0, -BITS[one.dtype]))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end, ends = 0, []
    for one in ordered:
        entries[one.name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": [end, end + one.bytes],
        }
        end += one.bytes
        ends.append(end)
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    start = 8 + len(text)
    places = {
        one.name: Tensor(one.name, file, one.dtype, one.shape, start + stop - one.bytes, start + stop)
        for one, stop in zip(ordered, ends, strict=True)
    }
    return len(text).to_bytes(8, "little") + text, places


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
