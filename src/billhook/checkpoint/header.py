"""Read the header of a safetensors file: which tensors it holds, without their data.

Source: the safetensors format: 8 bytes, the header's length N (little endian); N bytes of JSON, padded with
spaces; then the tensors' data. Offsets count from the start of the data, which the tensors fill without gap
or overlap.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import WeightError

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_MOST_DIMENSIONS = 64
_LARGEST = 2**63 - 1
_ENTRY = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, without its data.

    Args:
        name: Its name.
        file: The file that holds it.
        dtype: The format's name of the element type, such as BF16.
        shape: Its dimensions.
        begin: Where its data starts, in bytes of the file.
        end: Where its data ends.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """Bytes of data."""
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


def read_header(file: Path) -> list[Tensor]:
    """Return the tensors of a safetensors file, in the order of their data.

    Raises:
        WeightError: Unreadable, truncated, not the format, or entries that are wrong, overlap, leave gaps,
            occur twice or lie outside the file; names file, tensor and value.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            data_bytes = size - _LENGTH_BYTES - length
            _check_length(file, size, length)
            text = stream.read(length)
    except OSError as error:
        raise WeightError(f"cannot read {file}: {error.strerror}") from error
    entries = _parse(file, text)
    entries.pop("__metadata__", None)
    tensors = [_read_entry(file, name, entry, data_bytes) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(file, tensors, data_bytes)
    start = _LENGTH_BYTES + length
    return [replace(tensor, begin=start + tensor.begin, end=start + tensor.end) for tensor in tensors]


def _check_length(file: Path, size: int, length: int) -> None:
    if size < _LENGTH_BYTES:
        raise WeightError(f"{file}: truncated: a safetensors file has at least 8 bytes (got {size})")
    if length > _MOST_HEADER_BYTES:
        raise WeightError(
            f"{file}: not a safetensors file: its first 8 bytes give a header of {length} bytes; "
            f"the format allows {_MOST_HEADER_BYTES}"
        )
    if _LENGTH_BYTES + length > size:
        raise WeightError(
            f"{file}: truncated: its header needs {_LENGTH_BYTES + length} bytes (the file has {size})"
        )


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
            raise WeightError(f"{file}: {twice!r} occurs twice in the header")
        return found

    try:
        found = json.loads(text.decode(), object_pairs_hook=unique)
    except WeightError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{file}: the header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightError(f"{file}: the header must be a JSON object (got {type(found).__name__})")
    return found


def _read_entry(file: Path, name: str, entry: Any, data_bytes: int) -> Tensor:
    place = f"{file}: tensor {name!r}"
    if name.encode(errors="ignore").decode() != name:
        raise WeightError(f"{place} has a name that is no text: half of a surrogate pair")
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise WeightError(f"{place} must have dtype, shape and data_offsets alone (got {entry!r:.200})")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise WeightError(f"{place} has the unknown dtype {dtype!r:.50}; known are {', '.join(BITS)}")
    if not _counts(shape):
        raise WeightError(f"{place} has shape {shape!r:.200}; it must be a list of whole numbers from 0")
    if not _counts(offsets) or len(offsets) != 2:
        raise WeightError(f"{place} has data_offsets {offsets!r:.200}; they must be two whole numbers from 0")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise WeightError(
            f"{place} has data_offsets {offsets}, outside of the file's {data_bytes} bytes of data; "
            "the file may be truncated"
        )
    bits = math.prod(shape) * BITS[dtype]
    if 8 * (end - begin) != bits:
        raise WeightError(
            f"{place} has {end - begin} bytes of data, but {dtype} {shape} takes {-(-bits // 8)} bytes"
        )
    return Tensor(name, file, dtype, tuple(shape), begin, end)


def _counts(value: Any) -> bool:
    """Return whether a value is a list of whole numbers from 0, such as a tensor may have."""
    if not isinstance(value, list) or len(value) > _MOST_DIMENSIONS:
        return False
    return all(type(one) is int and 0 <= one <= _LARGEST for one in value)


def _check_cover(file: Path, tensors: list[Tensor], data_bytes: int) -> None:
    """Refuse data that two tensors share, or that belongs to none."""
    filled, before = 0, ""
    for tensor in tensors:
        if tensor.begin < filled:
            raise WeightError(
                f"{file}: tensor {tensor.name!r} starts at byte {tensor.begin} of the data, "
                f"inside of {before!r}, which ends at {filled}"
            )
        if tensor.begin > filled:
            raise WeightError(
                f"{file}: bytes {filled} to {tensor.begin} of the data, before tensor {tensor.name!r}, "
                "belong to no tensor"
            )
        filled, before = tensor.end, tensor.name
    if filled < data_bytes:
        raise WeightError(
            f"{file}: bytes {filled} to {data_bytes} of the data, the last, belong to no tensor"
        )
