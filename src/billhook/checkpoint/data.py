"""The data of a checkpoint's tensors as numpy arrays, read or mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import WeightError
from .header import Tensor

_CHUNK = 1 << 24
# 8-bit floats stay codes, since formats compute with codes.
_NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E5M2": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F64": np.dtype("<f8"),
}


def read_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Read a tensor's data.

    Returns:
        An array of its shape; 8-bit floats as uint8 codes.

    Raises:
        WeightError: The file cannot be read, has become shorter, or numpy has no such type.
    """
    kind = _dtype(tensor)
    data = np.empty(tensor.bytes, np.uint8)
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.begin)
            got = stream.readinto(data)  # type: ignore[arg-type]
    except OSError as error:
        raise WeightError(f"cannot read {tensor.file}: {error.strerror}") from error
    if got != tensor.bytes:
        raise WeightError(
            f"{tensor.file}: truncated: tensor {tensor.name} lacks its last {tensor.bytes - (got or 0)} bytes"
        )
    array: npt.NDArray[Any] = data.view(kind).reshape(tensor.shape)
    return array


def read_chunks(tensor: Tensor) -> Iterator[bytes]:
    """Read a tensor's data in pieces.

    Raises:
        WeightError: The file cannot be read, or has become shorter.
    """
    left = tensor.bytes
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.begin)
            while data := stream.read(min(_CHUNK, left)):
                left -= len(data)
                yield data
    except OSError as error:
        raise WeightError(f"cannot read {tensor.file}: {error.strerror}") from error
    if left:
        raise WeightError(f"{tensor.file}: truncated: tensor {tensor.name} lacks its last {left} bytes")


def map_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Map a tensor's data into memory: pages are read when they are touched; what is written stays private.

    Returns:
        As `read_array`.

    Raises:
        WeightError: As `read_array`.
    """
    kind = _dtype(tensor)
    if tensor.bytes == 0:
        return np.empty(tensor.shape, kind)
    try:
        data = np.memmap(tensor.file, np.uint8, "c", tensor.begin, (tensor.bytes,))
    except (OSError, ValueError) as error:  # ValueError: the file has become shorter
        raise WeightError(f"cannot map {tensor.file}: {error}") from error
    array: npt.NDArray[Any] = np.asarray(data).view(kind).reshape(tensor.shape)
    return array


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    if tensor.dtype not in _NUMPY:
        raise WeightError(f"{tensor.file}: tensor {tensor.name} is {tensor.dtype}, which is not read")
    return _NUMPY[tensor.dtype]
