"""Launch GEMMs, over and over.

What a kernel and sizes decide (grid, workspace, the numbers of the argument) is decided once, in a
`GemmLaunch`; what a stream decides, once a stream. Each start then fills in addresses.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from .. import families
from . import params
from .launch import describe, launch_described
from .loader import GemmKernel
from .tensor_map import Matrix, tensor_maps
from .workspace import workspace

_MOST_MAPS = 256  # tensor maps that one launch keeps; an allocator gives the same addresses again and again


class _Arguments(threading.local):
    """Memory for the arguments of this thread's next launch, and the array of pointers to them.

    A kernel reads as many pointers as it has arguments: those without tensor maps leave them alone.
    """

    def __init__(self) -> None:
        self.params = ctypes.create_string_buffer(params.LAYOUT.size)
        self.pointers = (ctypes.c_void_p * 3)(ctypes.addressof(self.params), None, None)
        self.address = ctypes.addressof(self.pointers)


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
    per_sm = families.ctas_per_sm(gemm.config, stages, kernel.sms, kernel.ctas_per_sm)
    return min(stages if split_k else tiles, per_sm * kernel.sms // tile.cluster) * tile.cluster


class GemmLaunch:
    """A GEMM of known sizes; `cuda/billhook/problem/params.cuh` explains them.

    Args:
        gemm: The kernel.
        tiles_m: Tiles along m, for MoE the most there can be; if the kernel is for grouped rows, A has as
            many tiles of rows.
        m: Rows of D.
        n: Output features.
        k: Input features.
        lda: Elements between rows of A.
        ldd: Elements between rows of D.
        groups: Scale groups along k.
        split_k: Whether CTAs may share an output tile.
        top_k: Rows of D that one row of A stands for.
    """

    def __init__(
        self,
        gemm: GemmKernel,
        tiles_m: int,
        *,
        m: int,
        n: int,
        k: int,
        lda: int,
        ldd: int,
        groups: int,
        split_k: bool,
        top_k: int = 1,
    ) -> None:
        self.gemm = gemm
        config, strips, blocks = gemm.config, -(-n // 64), -(-k // 64)
        self.ctas = grid(gemm, tiles_m, strips, blocks, split_k)
        self._numbers = (m, n, k, lda, ldd, strips, blocks, groups, top_k, split_k)
        self._rows = tiles_m * config.tile.tile_m if config.grouped else m
        self._boxes = families.boxes(config)
        self._maps: dict[int, list[Any]] = {}
        self._places: dict[tuple[int, bool], tuple[int, Any]] = {}

    def start(
        self,
        stream: int,
        capturing: bool,
        *,
        a: int,
        codes: int,
        scales: int,
        d: int,
        bias: int = 0,
        zeros: int = 0,
        channel_scales: int = 0,
        token_scales: int = 0,
        global_scales: int = 0,
        sorted_token_ids: int = 0,
        expert_ids: int = 0,
        num_tokens_padded: int = 0,
        topk_weights: int = 0,
    ) -> None:
        """Launch the kernel.

        Args:
            stream: Stream handle.
            capturing: Whether the stream is being captured into a CUDA graph.
            a: Address of A, like all that follow; 0 for what there is not.

        Raises:
            CudaError: The driver refused.
        """
        partials, description = self._places.get((stream, capturing)) or self._place(stream, capturing)
        arguments = _arguments
        params.pack_into(
            arguments.params,
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
            *self._numbers,
        )
        if self._boxes:
            held = self._maps.get(a) or self._map(a)  # stays alive until the driver has copied it
            for place, one in enumerate(held, start=1):
                arguments.pointers[place] = one.address
        launch_described(self.gemm.kernel, self.ctas, description, arguments.address)

    def _place(self, stream: int, capturing: bool) -> tuple[int, Any]:
        """Return the workspace on a stream, which it keeps, and the driver's description of the launch."""
        kernel = self.gemm.kernel
        size = families.workspace(self.gemm.config, self.ctas)
        place = (workspace(kernel.device, stream, capturing, size), describe(kernel, self.ctas, stream))
        self._places[stream, capturing] = place
        return place

    def _map(self, address: int) -> list[Any]:
        config = self.gemm.config
        _, _, k, lda, *_ = self._numbers
        matrix = Matrix(config.types.a.name, address, rows=self._rows, features=k, stride=lda)
        made = [tensor_maps(matrix, rows) for rows in self._boxes]
        if len(self._maps) >= _MOST_MAPS:
            self._maps.clear()
        self._maps[address] = made
        return made
