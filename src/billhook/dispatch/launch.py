"""Launch kernels: arguments, and programmatic dependent launch. `gemm.py` launches GEMMs.

What does not change from call to call is made once: launch descriptions per (kernel,
grid, stream), argument blocks per thread. The driver copies arguments during the call.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

from . import cuda
from .loader import LoadedKernel

ROUTE_THREADS = 1024  # kThreads of cuda/billhook/kernel/route.cuh
MAX_EXPERTS = 1024  # kMaxExperts of the same
GROUP_THREADS = 256  # kThreads of cuda/billhook/kernel/group.cuh
GROUP_CTAS_PER_SM = 4  # a copy is bound by memory: enough to keep it busy
_ROUTE_LAYOUT = struct.Struct("=Q3i4xQQQ")
_ROUTE_OFFSETS = (0, 8, 12, 16, 24, 32, 40)
GROUP_LAYOUT = struct.Struct("=4Q4i")  # GroupParams
_CHUNK = 16  # bytes that a thread copies at a time


class _Arguments(threading.local):
    """Memory for the arguments of this thread's next launch, and the array of pointers to them."""

    def __init__(self) -> None:
        self.route = ctypes.create_string_buffer(_ROUTE_LAYOUT.size)
        self.group = ctypes.create_string_buffer(GROUP_LAYOUT.size)
        route = ctypes.addressof(self.route)
        self._arrays = (
            (ctypes.c_void_p * len(_ROUTE_OFFSETS))(*(route + offset for offset in _ROUTE_OFFSETS)),
            (ctypes.c_void_p * 1)(ctypes.addressof(self.group)),
        )
        self.route_pointers, self.group_pointers = map(ctypes.addressof, self._arrays)


_arguments = _Arguments()


def launch_route(
    kernel: LoadedKernel,
    stream: int,
    *,
    topk_ids: int,
    count: int,
    num_experts: int,
    block_m: int,
    sorted_token_ids: int,
    expert_ids: int,
    num_tokens_padded: int,
) -> None:
    """Launch the routing kernel, one CTA per expert.

    Args:
        kernel: The kernel.
        stream: Stream handle.
        topk_ids: Address of the expert of each row, int32.
        count: Rows.
        num_experts: Number of experts.
        block_m: Rows of one block.
        sorted_token_ids: Address of the row numbers to be written.
        expert_ids: Address of the expert of each block, to be written.
        num_tokens_padded: Address of the used length of sorted_token_ids, to be written.

    Raises:
        CudaError: The driver refused.
    """
    _ROUTE_LAYOUT.pack_into(
        _arguments.route,
        0,
        topk_ids,
        count,
        num_experts,
        block_m,
        sorted_token_ids,
        expert_ids,
        num_tokens_padded,
    )
    launch_kernel(kernel, num_experts, stream, _arguments.route_pointers)


def launch_group(
    kernel: LoadedKernel,
    stream: int,
    *,
    a: int,
    grouped: int,
    sorted_token_ids: int,
    num_tokens_padded: int,
    rows: int,
    row_bytes: int,
    stride_bytes: int,
    top_k: int,
) -> None:
    """Launch the kernel that copies activations into the order of a routing.

    Args:
        kernel: The kernel.
        stream: Stream handle.
        a: Address of the activations, aligned to 16 bytes.
        grouped: Address of the copy, to be written: dense rows, as many as sorted_token_ids has room for.
        sorted_token_ids: Address of the row numbers that `launch_route` wrote.
        num_tokens_padded: Address of their used length.
        rows: (token, slot) rows; larger row numbers are padding, whose rows are left as they are.
        row_bytes: Of one row, a multiple of 16.
        stride_bytes: Between rows of `a`, a multiple of 16.
        top_k: Rows that one row of `a` stands for.

    Raises:
        CudaError: The driver refused.
    """
    GROUP_LAYOUT.pack_into(
        _arguments.group,
        0,
        a,
        grouped,
        sorted_token_ids,
        num_tokens_padded,
        rows,
        row_bytes // _CHUNK,
        stride_bytes // _CHUNK,
        top_k,
    )
    launch_kernel(kernel, GROUP_CTAS_PER_SM * kernel.sms, stream, _arguments.group_pointers)


def launch_kernel(kernel: LoadedKernel, ctas: int, stream: int, pointers: int) -> None:
    """Launch a kernel.

    Args:
        kernel: The kernel.
        ctas: CTAs of the grid.
        stream: Stream handle.
        pointers: Address of an array of pointers to its arguments; they are copied during the call.

    Raises:
        CudaError: The driver refused; the message names the kernel.
    """
    description = kernel.launches.get((ctas, stream))
    if description is None:
        description = kernel.launches[ctas, stream] = describe(kernel, ctas, stream)
    launch_described(kernel, ctas, description, pointers)


def launch_described(kernel: LoadedKernel, ctas: int, description: Any, pointers: int) -> None:
    """Launch a kernel as `describe` says.

    Args:
        kernel: The kernel.
        ctas: CTAs of the grid.
        description: Of this launch.
        pointers: As in `launch_kernel`.

    Raises:
        CudaError: The driver refused; the message names the kernel.
    """
    cuda.bind_thread(kernel.device)
    (status,) = cuda.driver().cuLaunchKernelEx(description, kernel.function, pointers, 0)
    if status != 0:
        error = cuda.refusal("cuLaunchKernelEx", status)
        raise type(error)(f"{kernel.name}, {ctas} CTAs on GPU {kernel.device}: {error}")


def describe(kernel: LoadedKernel, ctas: int, stream: int) -> Any:
    """Return the driver's description of a launch.

    Args:
        kernel: The kernel.
        ctas: CTAs of the grid.
        stream: Stream handle.
    """
    driver = cuda.driver()
    description = driver.CUlaunchConfig()
    description.gridDimX, description.gridDimY, description.gridDimZ = ctas, 1, 1
    description.blockDimX, description.blockDimY, description.blockDimZ = kernel.threads, 1, 1
    description.sharedMemBytes = kernel.shared_memory
    description.hStream = driver.CUstream(stream)
    if kernel.overlaps:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        description.attrs = [attribute]
        description.numAttrs = 1
    return description
