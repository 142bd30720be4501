"""Machine code onto a GPU: modules, kernel handles, occupancy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..arch import Arch
from ..config import KernelConfig
from ..errors import ArchError
from ..families import shared_memory, threads
from . import cuda


@dataclass(frozen=True, eq=False)
class LoadedKernel:
    """A kernel on one GPU, ready to be launched.

    Args:
        name: Its symbol.
        function: The driver's handle.
        device: GPU number.
        threads: Threads of one CTA.
        shared_memory: Dynamic shared memory of one CTA, bytes.
        sms: Multiprocessors of the GPU.
        ctas_per_sm: CTAs that one of them holds at a time.
        overlaps: Launched before the kernel ahead of it in the stream has ended; it waits for it itself.
        launches: Launch descriptions by (CTAs, stream), made once each.
    """

    name: str
    function: Any
    device: int
    threads: int
    shared_memory: int
    sms: int
    ctas_per_sm: int
    overlaps: bool
    launches: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class GemmKernel:
    """A GEMM kernel on one GPU.

    Args:
        config: Its compile-time constants.
        kernel: The kernel.
    """

    config: KernelConfig
    kernel: LoadedKernel


def load_kernel(
    cubin: bytes, name: str, arch: Arch, device: int, *, threads: int, shared_memory: int = 0
) -> LoadedKernel:
    """Load one kernel of a cubin; the module stays loaded for the life of the process.

    Args:
        cubin: Machine code.
        name: The kernel's symbol.
        arch: The target it was compiled for.
        device: GPU number.
        threads: Threads of one CTA.
        shared_memory: Dynamic shared memory of one CTA, bytes.

    Raises:
        ArchError: The GPU does not run code for `arch`.
        CudaError: The driver refuses the code, the symbol or the shared memory.
    """
    capability = cuda.capability(device)
    if not arch.runs_on(capability):
        raise ArchError(
            f"{name} was compiled for {arch}, and GPU {device} is {capability[0]}.{capability[1]}; "
            f"build with --arch {capability[0]}.{capability[1]}"
        )
    attributes = cuda.driver().CUfunction_attribute
    with cuda.setup(device):
        function = cuda.call("cuModuleGetFunction", cuda.call("cuModuleLoadData", cubin), name.encode())
        if shared_memory:
            limit = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            cuda.call("cuFuncSetAttribute", function, limit, shared_memory)
        per_sm = cuda.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", function, threads, shared_memory)
    return LoadedKernel(
        name=name,
        function=function,
        device=device,
        threads=threads,
        shared_memory=shared_memory,
        sms=cuda.multiprocessors(device),
        ctas_per_sm=max(1, per_sm),
        overlaps=capability >= (9, 0) and arch.capability >= (9, 0),
    )


def load_gemm(cubin: bytes, config: KernelConfig, device: int) -> GemmKernel:
    """Load a GEMM kernel.

    Raises: As `load_kernel`.
    """
    kernel = load_kernel(
        cubin,
        config.name,
        config.arch,
        device,
        threads=threads(config),
        shared_memory=shared_memory(config),
    )
    return GemmKernel(config, kernel)
