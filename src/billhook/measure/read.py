"""The kernel that only reads as many bytes as a problem has weights: a measured floor."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..arch import Arch
from ..build import Cache, Unit, cache_folder, compile_unit
from ..emit import SourceFile
from .contestant import Bind, Launch
from .inputs import Inputs, Weights
from .roofline import weight_bytes
from .rows import FLOOR

if TYPE_CHECKING:
    import torch

    from ..dispatch.loader import LoadedKernel

KERNEL = "read_words"  # of cuda/billhook/kernel/read.cuh, as are the two numbers
THREADS = 256
CTAS_PER_SM = 8  # of 256 threads: as many as fit
_SOURCE = '#include "billhook/kernel/read.cuh"\n'


class Reader:
    """Reads the bytes of the weights that a problem needs, from buffers of its own.

    Args:
        arch: The GPU target.
    """

    name = FLOOR

    def __init__(self, arch: Arch) -> None:
        self.arch = arch

    def version(self) -> str:
        """Return "": it is part of Billhook."""
        return ""

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Compile the kernel and fill the buffers."""
        import torch

        from ..dispatch.loader import load_kernel

        device = weights.codes.device
        unit = Unit(KERNEL, "support", self.arch, SourceFile("read.cu", _SOURCE), threads=THREADS)
        cubin = compile_unit(unit, Cache(cache_folder())).cubin
        kernel = load_kernel(cubin, KERNEL, self.arch, device.index or 0, threads=THREADS)
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        largest = max(case.copies * _words(case) for case in cases)
        generator = torch.Generator(device).manual_seed(1)
        # int64 pairs are the 16-byte words.
        data = torch.randint(-(2**62), 2**62, (largest, 2), device=device, generator=generator)

        def bind(inputs: Inputs) -> Launch:
            count = _words(inputs)
            parts = [data[copy * count : (copy + 1) * count] for copy in range(inputs.copies)]
            expected = {_xor(part) for part in parts}

            def call(copy: int) -> torch.Tensor:
                out = torch.empty(CTAS_PER_SM * sms * THREADS // 32, dtype=torch.int32, device=device)
                stream = torch.cuda.current_stream(device).cuda_stream
                _launch(
                    kernel,
                    CTAS_PER_SM * sms,
                    stream,
                    words=parts[copy].data_ptr(),
                    count=count,
                    out=out.data_ptr(),
                )
                return out

            return Launch(call, KERNEL, check=lambda out: 0.0 if _xor(out) in expected else float("nan"))

        return bind


def _words(inputs: Inputs) -> int:
    return -(-weight_bytes(inputs.problem, inputs.experts_hit) // 16)


def _xor(data: torch.Tensor) -> int:
    """Return the XOR of a tensor's 32-bit words: halves of it are combined until one word is left."""
    import torch

    words = data.contiguous().view(torch.int32).flatten()
    while words.numel() > 1:
        if words.numel() % 2:
            words = torch.cat((words, words.new_zeros(1)))
        half = words.numel() // 2
        words = words[:half] ^ words[half:]
    return int(words.item())


def _launch(kernel: LoadedKernel, ctas: int, stream: int, *, words: int, count: int, out: int) -> None:
    from ..dispatch import cuda
    from ..dispatch.launch import describe

    arguments = ((words, count, out), (ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p))
    cuda.call("cuLaunchKernelEx", describe(kernel, ctas, stream), kernel.function, arguments, 0)
