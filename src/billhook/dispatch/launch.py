"""Launch kernels: grids, arguments, and programmatic dependent launch.

What does not change from call to call is made once: launch descriptions per (kernel,
grid, stream), argument blocks per thread. The driver copies arguments during the call.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

from .. import families
from . import cuda, params
from .loader import GemmKernel, LoadedKernel
from .tensor_map import SIZE as TENSOR_MAP_SIZE
from .tensor_map import Matrix, tensor_map
from .workspace import workspace

ROUTE_THREADS = 1024  # kThreads of cuda/billhook/kernel/route.cuh
MAX_EXPERTS = 1024  # kMaxExperts of the same
GROUP_THREADS = 256  # kThreads of cuda/billhook/kernel/group.cuh
GROUP_CTAS_PER_SM = 4  # a copy is bound by memory: enough to keep it busy
_ROUTE_LAYOUT = struct.Struct("=Q3i4xQQQ")
_ROUTE_OFFSETS = (0, 8, 12, 16, 24, 32, 40)
GROUP_LAYOUT = struct.Struct("=4Q4i")  # GroupParams
_CHUNK = 16  # bytes that a thread copies at a time


class _Arguments(threading.local):
    """Memory for the arguments of this thread's next launch, and the array of pointers to them.

    A kernel reads as many pointers as it has arguments: those without a tensor map leave it alone.
    """

    def __init__(self) -> None:
        self.gemm = ctypes.create_string_buffer(params.LAYOUT.size)
        self.tensor_map = ctypes.create_string_buffer(TENSOR_MAP_SIZE)
        self.route = ctypes.create_string_buffer(_ROUTE_LAYOUT.size)
        self.group = ctypes.create_string_buffer(GROUP_LAYOUT.size)
        gemm, route = ctypes.addressof(self.gemm), ctypes.addressof(self.route)
        self._arrays = (
            (ctypes.c_void_p * 2)(gemm, ctypes.addressof(self.tensor_map)),
            (ctypes.c_void_p * len(_ROUTE_OFFSETS))(*(route + offset for offset in _ROUTE_OFFSETS)),
            (ctypes.c_void_p * 1)(ctypes.addressof(self.group)),
        )
        self.gemm_pointers, self.route_pointers, self.group_pointers = map(ctypes.addressof, self._arrays)


_arguments = _Arguments()


def grid(gemm: GemmKernel, tiles_m: int, strips: int, blocks: int, split_k: bool) -> int:
    """Return how many CTAs share the work, in whole clusters: as many as run at once, or as there are pieces.

    Args:
        gemm: The kernel.
        tiles_m: Tiles along m.
        strips: Strips of 64 output features.
        blocks: Blocks of 64 input features.
        split_k: Whether CTAs may share an output tile: then one stage is a piece, else one tile.
    """
    tile, kernel = gemm.config.tile, gemm.kernel
    tiles = tiles_m * -(-strips // (tile.strips * tile.cluster))
    stages = tiles * -(-blocks // tile.blocks)
    per_sm = families.ctas_per_sm(stages, kernel.sms, kernel.ctas_per_sm)
    return min(stages if split_k else tiles, per_sm * kernel.sms // tile.cluster) * tile.cluster


def launch_gemm(
    gemm: GemmKernel,
    stream: int,
    capturing: bool,
    tiles_m: int,
    *,
    a: int,
    codes: int,
    scales: int,
    bias: int,
    d: int,
    m: int,
    n: int,
    k: int,
    lda: int,
    ldd: int,
    groups: int,
    split_k: bool,
    zeros: int = 0,
    channel_scales: int = 0,
    token_scales: int = 0,
    global_scales: int = 0,
    sorted_token_ids: int = 0,
    expert_ids: int = 0,
    num_tokens_padded: int = 0,
    topk_weights: int = 0,
    top_k: int = 1,
) -> None:
    """Launch a GEMM; `cuda/billhook/problem/params.cuh` explains the arguments (addresses and numbers).

    Args:
        gemm: The kernel.
        stream: Stream handle.
        capturing: Whether the stream is being captured into a CUDA graph.
        tiles_m: Tiles along m, for MoE the most there can be; if the kernel is for grouped rows, `a` has
            as many tiles of rows.

    Raises:
        CudaError: The driver refused.
    """
    kernel = gemm.kernel
    strips, blocks = -(-n // 64), -(-k // 64)
    ctas = grid(gemm, tiles_m, strips, blocks, split_k)
    partials = workspace(kernel.device, stream, capturing, families.workspace(gemm.config, ctas))
    params.pack_into(
        _arguments.gemm,
        0,
        a,
        codes,
        scales,
        zeros,
        channel_scales,
        token_scales,
        global_scales,
        bias,
        d,
        partials,
        sorted_token_ids,
        expert_ids,
        num_tokens_padded,
        topk_weights,
        m,
        n,
        k,
        lda,
        ldd,
        strips,
        blocks,
        groups,
        top_k,
        split_k,
    )
    if families.takes_tensor_map(gemm.config):
        tile = gemm.config.tile
        rows = tiles_m * tile.tile_m if gemm.config.grouped else m
        matrix = Matrix(gemm.config.types.a.name, a, rows=rows, features=k, stride=lda)
        encoded = tensor_map(matrix, tile.tile_m // tile.cluster)
        ctypes.memmove(_arguments.tensor_map, encoded, TENSOR_MAP_SIZE)
    launch_kernel(kernel, ctas, stream, _arguments.gemm_pointers)


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
    cuda.bind_thread(kernel.device)
    description = kernel.launches.get((ctas, stream))
    if description is None:
        description = kernel.launches[ctas, stream] = describe(kernel, ctas, stream)
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
