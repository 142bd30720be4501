"""Tensor maps: what the Tensor Memory Accelerator (TMA) of SM90 must know of activations.

One is 128 bytes, made by the driver from address, extents and box, and passed to the
kernel by value. Making one takes microseconds, so whoever launches keeps it.

They come in pairs: of boxes of a number of rows, and of a box of the rows that these leave
over. To fill what a box has beyond the matrix with zeros takes the hardware longer than to
copy as many rows (docs/decisions/machete-kernel.md, "The end of m").
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

from ..dtypes import ALL
from ..errors import CudaError, ToolchainError
from . import cuda

SIZE = 128
_ALIGNMENT = 64  # CUtensorMap's
# Source: CUDA Driver API, "Tensor Map Object Management": CUtensorMapDataType and the enumerations after it.
_TYPES = {"f16": 6, "bf16": 9, "e4m3fn": 0, "s8": 0}  # bytes are bytes to it
_NO_INTERLEAVE, _SWIZZLE_128B, _L2_PROMOTION_256B, _FILL_ZEROS = 0, 3, 3, 0
_BOX_BYTES = 128  # of features: what the swizzle spans


class Matrix(NamedTuple):
    """A row-major matrix in GPU memory.

    Args:
        element: "f16", "bf16", "e4m3fn" or "s8".
        address: Of the first element, a multiple of 16 bytes.
        rows: Rows.
        features: Elements of a row.
        stride: Elements between rows, in all a multiple of 16 bytes.
    """

    element: str
    address: int
    rows: int
    features: int
    stride: int


class TensorMaps:
    """Two tensor maps in the host's memory, one behind the other, at `address` for as long as this lives."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(2 * SIZE + _ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT


def tensor_maps(matrix: Matrix, box_rows: int) -> TensorMaps:
    """Return the tensor maps by which boxes of 128 bytes a row come into shared memory as wgmma reads them.

    Args:
        matrix: The activations.
        box_rows: Rows of a box of the first map, at most 256. The second one's are those that such boxes
            leave over at the end of the matrix; as many, if there are none.

    Raises:
        CudaError: The driver refused.
    """
    made = TensorMaps()
    _encode(made.address, matrix, box_rows)
    _encode(made.address + SIZE, matrix, matrix.rows % box_rows or box_rows)
    return made


def _encode(address: int, matrix: Matrix, box_rows: int) -> None:
    element_bytes = ALL[matrix.element].bits // 8
    status = _encoder()(
        ctypes.c_void_p(address),
        _TYPES[matrix.element],
        2,
        ctypes.c_void_p(matrix.address),
        (ctypes.c_uint64 * 2)(matrix.features, matrix.rows),
        (ctypes.c_uint64 * 1)(element_bytes * matrix.stride),
        (ctypes.c_uint32 * 2)(_BOX_BYTES // element_bytes, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        _NO_INTERLEAVE,
        _SWIZZLE_128B,
        _L2_PROMOTION_256B,
        _FILL_ZEROS,
    )
    if status != 0:
        raise CudaError(
            f"cuTensorMapEncodeTiled failed with {status} for {matrix.rows} x {matrix.features} "
            f"{matrix.element} activations at {matrix.address:#x}, {matrix.stride} elements between rows; "
            "address and rows must be aligned to 16 bytes"
        )


@cache
def _encoder() -> Any:
    """Return the driver's function; cuda-bindings' own hands it memory that need not be aligned."""
    cuda.driver()
    try:
        return ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise ToolchainError(f"tensor maps need NVIDIA driver 525 or later: {error}") from error
