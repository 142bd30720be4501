"""The kernels that this process uses, loaded per GPU.

They come from a bundle if one is given (`use_bundle(path)`, else the environment variable
`BILLHOOK_BUNDLE`), else they are compiled on first use into the cache, as our rules choose or those
that were named (`use_rules`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

from ..build.bundle import Bundle
from ..config import GemmTypes, KernelConfig, Problem
from ..dtypes import dtype
from . import cuda
from .launch import GROUP_THREADS, ROUTE_THREADS
from .loader import GemmKernel, LoadedKernel, load_gemm, load_kernel
from .packing import PACK_THREADS
from .quantizing import QUANTIZE_THREADS
from .source import BundleSource, Compiler, Source

_MOST_CHOICES = 1 << 16


class Request(NamedTuple):
    """A problem on a GPU, as a key that is quick to make and to hash.

    Args:
        device: GPU number.
        m: Tokens.
        n: Output features.
        k: Input features.
        activations: Type of the activations: "f16", "bf16", "e4m3fn" or "s8".
        weight: Type of the weights, such as "u4b8".
        scale: Type of the scales.
        output: Type of D.
        group_size: Weights along k that share one scale; -1 for channel scales.
        num_experts: 0 for a dense layer.
        top_k: 0 for a dense layer.
        block_m: MoE: rows of one block of the routing; 0 for any.
    """

    device: int
    m: int
    n: int
    k: int
    activations: str
    weight: str
    scale: str
    output: str
    group_size: int
    num_experts: int = 0
    top_k: int = 0
    block_m: int = 0

    @property
    def types(self) -> GemmTypes:
        """The element types."""
        return GemmTypes(*map(dtype, (self.activations, self.weight, self.scale, self.output)))

    @property
    def problem(self) -> Problem:
        """The problem, without the GPU."""
        return Problem(self.m, self.n, self.k, self.types, self.group_size, self.num_experts, self.top_k)


class Kernels:
    """Kernels of one source, loaded per GPU.

    Args:
        source: Where they come from.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.calls: dict[tuple[Hashable, ...], Any] = {}  # what operators prepared with these kernels
        self._chosen: dict[Request, GemmKernel] = {}
        self._gemms: dict[tuple[int, KernelConfig], GemmKernel] = {}
        self._support: dict[tuple[int, str], LoadedKernel] = {}
        self._lock = threading.RLock()

    def gemm(self, request: Request) -> GemmKernel:
        """Return the kernel for a problem, loaded.

        Raises:
            UnsupportedError: No kernel serves it.
            CompileError, ToolchainError, BundleError, CudaError: It cannot be compiled, read or loaded.
        """
        found = self._chosen.get(request)
        if found is not None:
            return found
        found = self.load(self.choose(request), request.device)
        with self._lock:
            if len(self._chosen) >= _MOST_CHOICES:
                self._chosen.clear()
            self._chosen[request] = found
        return found

    def choose(self, request: Request) -> KernelConfig:
        """Return the kernel for a problem, without loading it.

        Raises: As `gemm`.
        """
        gpu = cuda.capability(request.device)
        count = cuda.multiprocessors(request.device)
        return self.source.choose(request.problem, gpu, request.block_m, count)

    def load(self, config: KernelConfig, device: int) -> GemmKernel:
        """Return a given kernel, loaded.

        Raises: As `gemm`.
        """
        with self._lock:
            found = self._gemms.get((device, config))
            if found is None:
                found = self._gemms[device, config] = load_gemm(self.source.cubin(config), config, device)
            return found

    def route(self, device: int) -> LoadedKernel:
        """Return the MoE routing kernel, loaded.

        Raises: As `gemm`.
        """
        return self._load_support("route", "route_tokens", device, ROUTE_THREADS)

    def group(self, device: int) -> LoadedKernel:
        """Return the kernel that groups MoE activations by expert, loaded.

        Raises: As `gemm`.
        """
        return self._load_support("group", "group_rows", device, GROUP_THREADS)

    def pack(self, name: str, device: int) -> LoadedKernel:
        """Return a kernel that packs weights, loaded.

        Args:
            name: Its symbol, as `dispatch.packing` names it.
            device: GPU number.

        Raises: As `gemm`.
        """
        return self._load_support("pack", name, device, PACK_THREADS)

    def quantize(self, name: str, device: int) -> LoadedKernel:
        """Return a kernel that quantizes activations, loaded.

        Args:
            name: Its symbol, such as `quantize_bf16_s8`.
            device: GPU number.

        Raises: As `gemm`.
        """
        return self._load_support("quantize", name, device, QUANTIZE_THREADS)

    def _load_support(self, part: str, name: str, device: int, threads: int) -> LoadedKernel:
        found = self._support.get((device, name))
        if found is None:
            with self._lock:
                arch, cubin = self.source.support(part, cuda.capability(device))
                found = load_kernel(cubin, name, arch, device, threads=threads)
                self._support[device, name] = found
        return found


_current: Kernels | None = None
_lock = threading.Lock()


def use_bundle(path: str | Path | None) -> None:
    """Take all kernels from a bundle from now on; with None, compile them on first use.

    Raises:
        BundleError: The bundle is missing, damaged or not one of ours.
    """
    global _current  # noqa: PLW0603 - the process's one choice
    source = Compiler() if path is None else BundleSource(Bundle.load(path))
    with _lock:
        _current = Kernels(source)


def use_rules(rules: str | Path) -> None:
    """Compile kernels on first use from now on, chosen by the rules that have a name or that a file holds.

    Args:
        rules: "native" for ours; "machete-0.20", or another release, for the schedule heuristic of vLLM's
            Machete where it applies (dense layers on 9.0) and ours elsewhere; or a file of such rules
            (docs/machete-heuristics.md).

    Raises:
        InputError: No such rules.
        ConfigError: The file cannot be read or makes no sense.
    """
    from ..vllm.machete.native import find_catalog

    global _current  # noqa: PLW0603 - the process's one choice
    chosen = Kernels(Compiler(find_catalog(rules)))
    with _lock:
        _current = chosen


def kernels() -> Kernels:
    """Return the kernels that this process uses.

    Raises:
        BundleError: `BILLHOOK_BUNDLE` names no whole bundle.
    """
    if _current is None:
        use_bundle(os.environ.get("BILLHOOK_BUNDLE") or None)
    found = _current
    return found if found is not None else kernels()
