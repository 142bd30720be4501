"""Launch the kernels of `cuda/billhook/kernel/quantize.cuh`; the struct is that of the header."""

from __future__ import annotations

import ctypes
import struct
import threading

from .launch import launch_kernel
from .loader import LoadedKernel

QUANTIZE_THREADS = 256  # kThreads of cuda/billhook/kernel/quantize.cuh
CHUNK = 16  # bytes that a thread loads at a time, where rows are aligned to as many
LAYOUT = struct.Struct("=4Qq2ifi")  # Params


class _Arguments(threading.local):
    """Memory for the arguments of this thread's next launch, and the array of pointers to them."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(LAYOUT.size)
        self._array = (ctypes.c_void_p * 1)(ctypes.addressof(self.memory))
        self.pointers = ctypes.addressof(self._array)


_arguments = _Arguments()


def launch_quantize(
    kernel: LoadedKernel,
    stream: int,
    *,
    x: int,
    codes: int,
    scales: int,
    given: int,
    stride_bytes: int,
    rows: int,
    k: int,
    number: float,
    aligned: bool,
) -> None:
    """Quantize activations.

    Args:
        kernel: The kernel for the types of `x` and of the codes.
        stream: Stream handle.
        x: Address of the activations.
        codes: Address of the codes [rows, k], to be written; aligned to 8 bytes.
        scales: Address of the scales, float32 [rows], to be written.
        given: Address of one float32 scale for all rows; 0 if there is none on the GPU.
        stride_bytes: Between rows of `x`.
        rows: Tokens, at least 1.
        k: Input features, at least 1.
        number: The scale for all rows if `given` is 0; 0.0 to find one for each.
        aligned: Whether rows of `x` begin at multiples of `CHUNK` bytes, and k fills as many.

    Raises:
        CudaError: The driver refused.
    """
    LAYOUT.pack_into(_arguments.memory, 0, x, codes, scales, given, stride_bytes, rows, k, number, aligned)
    ctas = min(rows, kernel.sms * kernel.ctas_per_sm)
    launch_kernel(kernel, ctas, stream, _arguments.pointers)
