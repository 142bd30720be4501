"""Launch the kernels of `cuda/billhook/kernel/pack.cuh`; the structs are those of that header."""

from __future__ import annotations

import ctypes
import struct

from .launch import launch_kernel
from .loader import LoadedKernel

PACK_THREADS = 256  # kThreads of cuda/billhook/kernel/pack.cuh
TILE_STRIPS = 2  # kStrips: strips and blocks that a CTA takes
SCALE_GROUPS = 64  # groups that a CTA takes
_CODES = struct.Struct("=3Q2iIiQ")
_SCALES = struct.Struct("=2Q3q3i4x")


def launch_pack_codes(
    kernel: LoadedKernel,
    stream: int,
    *,
    source: int,
    packed: int,
    refused: int,
    order: int,
    experts: int,
    n: int,
    k: int,
    zero: int,
    refuse_nan: bool,
) -> None:
    """Pack codes.

    Args:
        kernel: The kernel for what `source` holds.
        stream: Stream handle.
        source: Address of the codes as they are stored, aligned to 16 bytes.
        packed: Address of the packed codes, to be written.
        refused: Address of an int32 that becomes 1 if a code is out of range.
        order: Address of int32 [k], for kernels of act-order: the stored input feature that each packed one
            is; else 0.
        experts: Weights one after another, at least 1.
        n: Output features, a multiple of 16.
        k: Input features, a multiple of 16.
        zero: The code that stands for zero.
        refuse_nan: Whether e4m3's NaN is out of range.

    Raises:
        CudaError: The driver refused.
    """
    strips, blocks = -(-n // 64), -(-k // 64)
    ctas = experts * -(-strips // TILE_STRIPS) * -(-blocks // TILE_STRIPS)
    padding = zero * 0x01010101
    _launch(kernel, ctas, stream, _CODES.pack(source, packed, refused, n, k, padding, refuse_nan, order))


def launch_pack_scales(
    kernel: LoadedKernel,
    stream: int,
    *,
    source: int,
    packed: int,
    experts: int,
    strides: tuple[int, int, int],
    n: int,
    groups: int,
    packed_groups: int,
) -> None:
    """Pack scales or zero points.

    Args:
        kernel: The kernel for their width.
        stream: Stream handle.
        source: Address of the scale of the first expert, group and column.
        packed: Address of the packed scales, to be written.
        experts: Weights, at least 1.
        strides: Elements of the source between experts, groups and columns.
        n: Output features.
        groups: Groups of the source.
        packed_groups: Groups of the padded k.

    Raises:
        CudaError: The driver refused.
    """
    ctas = experts * -(-n // 64) * -(-packed_groups // SCALE_GROUPS)
    _launch(kernel, ctas, stream, _SCALES.pack(source, packed, *strides, n, groups, packed_groups))


def _launch(kernel: LoadedKernel, ctas: int, stream: int, parameters: bytes) -> None:
    held = ctypes.create_string_buffer(parameters, len(parameters))
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(held))
    launch_kernel(kernel, ctas, stream, ctypes.addressof(pointers))
