"""Global memory through which the CTAs of a GEMM hand each other partial sums.

Its bits are all ones between launches: a kernel waits until a slot is filled, and
empties it again. There is one workspace per GPU, stream and use (eager or captured),
because kernels of one stream run one after another. It is allocated through the
driver, outside torch's pools, so it outlives every CUDA graph; it grows, and what it
outgrew stays, because graphs may hold its address. Two graphs that were captured on
the same stream share one: do not replay them at the same time.
"""

from __future__ import annotations

import threading

from . import cuda

_SMALLEST = 4 << 20
_EMPTY = 0xFF

_spaces: dict[tuple[int, int, bool], tuple[int, int]] = {}  # -> address, size
_lock = threading.Lock()


def workspace(device: int, stream: int, capturing: bool, size: int) -> int:
    """Return the address of a stream's workspace.

    Args:
        device: GPU number.
        stream: Stream handle.
        capturing: Whether the stream is being captured into a CUDA graph.
        size: Bytes needed.

    Raises:
        CudaError: Out of memory.
    """
    key = (device, stream, capturing)
    address, have = _spaces.get(key, (0, 0))
    if have >= size:
        return address
    with _lock:
        address, have = _spaces.get(key, (0, 0))
        if have < size:
            have = max(_SMALLEST, 1 << (size - 1).bit_length())
            address = _allocate(device, have)
            _spaces[key] = address, have
        return address


def _allocate(device: int, size: int) -> int:
    """Allocate and fill memory, on a stream of its own: the current one may be part of a capture."""
    with cuda.setup(device):
        address = cuda.call("cuMemAlloc", size)
        stream = cuda.call("cuStreamCreate", cuda.driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
        try:
            cuda.call("cuMemsetD8Async", address, _EMPTY, size, stream)
            cuda.call("cuStreamSynchronize", stream)
        finally:
            cuda.call("cuStreamDestroy", stream)
    return int(address)
