"""Global memory that a GEMM's CTAs share: partial sums, and counters that are zero between launches.

There is one workspace per GPU, stream and use (eager or captured), because kernels of
one stream run one after another. It is allocated through the driver, outside torch's
pools, so it outlives every CUDA graph; it grows, and what it outgrew stays, because
graphs may hold its address. Two graphs that were captured on the same stream share
one: do not replay them at the same time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..errors import CudaError
from . import cuda

COUNTERS = 16384  # far above SMs x resident CTAs of any GPU
_SMALLEST = 4 << 20


@dataclass(frozen=True)
class Workspace:
    """Device addresses.

    Args:
        partials: Address of the partial sums.
        partials_bytes: Their size.
        counters: Address of `COUNTERS` u32, zero between launches.
    """

    partials: int
    partials_bytes: int
    counters: int


_spaces: dict[tuple[int, int, bool], Workspace] = {}
_lock = threading.Lock()


def workspace(device: int, stream: int, capturing: bool, partials_bytes: int, counters: int) -> Workspace:
    """Return the workspace of a stream, with at least this much room.

    Args:
        device: GPU number.
        stream: Stream handle.
        capturing: Whether the stream is being captured into a CUDA graph.
        partials_bytes: Bytes of partial sums needed.
        counters: Counters needed.

    Raises:
        CudaError: Out of memory, or more counters than any GPU needs.
    """
    space = _spaces.get((device, stream, capturing))
    if space is not None and space.partials_bytes >= partials_bytes and counters <= COUNTERS:
        return space
    if counters > COUNTERS:
        raise CudaError(f"a launch of {counters} CTAs needs more than {COUNTERS} counters")
    with _lock:
        return _grow((device, stream, capturing), partials_bytes)


def _grow(key: tuple[int, int, bool], partials_bytes: int) -> Workspace:
    space = _spaces.get(key)
    if space is not None and space.partials_bytes >= partials_bytes:
        return space
    size = max(_SMALLEST, 1 << (partials_bytes - 1).bit_length())
    with cuda.setup(key[0]):
        counters = space.counters if space else _zeroed(4 * COUNTERS)
        _spaces[key] = Workspace(int(cuda.call("cuMemAlloc", size)), size, counters)
    return _spaces[key]


def _zeroed(size: int) -> int:
    """Allocate and clear memory on a stream of its own: the default stream may be part of a capture."""
    address = cuda.call("cuMemAlloc", size)
    stream = cuda.call("cuStreamCreate", cuda.driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
    try:
        cuda.call("cuMemsetD8Async", address, 0, size, stream)
        cuda.call("cuStreamSynchronize", stream)
    finally:
        cuda.call("cuStreamDestroy", stream)
    return int(address)
