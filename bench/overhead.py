"""What a call costs the host: microseconds from Python to the end of the launch, eager, one thread.

    python bench/overhead.py            # on a GPU, or without one
    python bench/overhead.py --m 1,512

On a GPU calls are real, of a layer so small that the GPU keeps up, and the queue is drained between rounds.
Without one the operators' CUDA side runs on CPU tensors and a driver that does nothing: all but the driver's
own time is there. The time is the least of the rounds' means; the rest is other work of the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import billhook
from billhook.arch import Arch, parse
from billhook.config import KernelConfig, Problem
from billhook.dispatch import cuda, provider, tensor_map
from billhook.formats.packed import find_format
from billhook.ops import calls, library, on_cuda
from billhook.ops.drawn import draw
from billhook.ops.tensors import stands_alone
from billhook.select import select

N = K = 512
EXPERTS, TOP_K = 4, 2
CALLS, ROUNDS = 50, 400


class IdleDriver:
    """Answers every question of the loader and launches nothing."""

    def __getattr__(self, name: str) -> Any:
        return IdleDriver() if name[:2] == "CU" else lambda *arguments: (0, 1)

    def __call__(self, *arguments: Any) -> Any:
        return IdleDriver()

    def cuLaunchKernelEx(self, *arguments: Any) -> tuple[int]:  # noqa: N802 - the driver's name
        return (0,)


class EmptyKernels:
    """Chooses kernels for GPUs of 9.0 as ever; their machine code is empty."""

    arch = parse("9.0a")

    def choose(
        self, problem: Problem, capability: tuple[int, int], block_m: int, multiprocessors: int
    ) -> KernelConfig:
        return select(problem, self.arch).config

    def cubin(self, config: KernelConfig) -> bytes:
        return b""

    def support(self, part: str, capability: tuple[int, int]) -> tuple[Arch, bytes]:
        return self.arch, b""


def do_without_gpu() -> None:
    """Let the operators' CUDA side serve CPU tensors."""
    driver = IdleDriver()
    cuda.driver = lambda: driver
    cuda.capability = lambda device: (9, 0)
    cuda.multiprocessors = lambda device: 132
    tensor_map._encoder = lambda: lambda *arguments: 0
    provider._current = provider.Kernels(EmptyKernels())
    for module in (calls, on_cuda):
        module.current_stream = lambda device: 1
    torch.cuda.is_current_stream_capturing = lambda: False
    names = ("gemm", "gemm_out", "moe_gemm", "moe_gemm_out", "moe_gemm_topk", "quantize_activations", "route")
    for name in names:
        function = getattr(on_cuda, name)
        library._library.impl(name, library._guarded(function), "CPU", allow_override=True)
        if name != "route":
            setattr(library, name, shortened(function, 2 if name == "quantize_activations" else 1))


def shortened(function: Callable[..., Any], other: int) -> Callable[..., Any]:
    """As `library` does for CUDA tensors."""

    def call(*arguments: Any) -> Any:
        first, second = arguments[0], arguments[other]
        second = first if second is None else second
        if first.is_cuda or first.get_device() >= 0 or not stands_alone(first, second):
            raise SystemExit("run without gradients and modes")
        return function(*arguments)

    return call


def measure(call: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Return the microseconds of a call."""
    best = float("inf")
    for _ in range(ROUNDS):
        wait()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - begin)
    return best / CALLS * 1e6


def contestants(m: int, device: str) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name."""
    generator = torch.Generator(device).manual_seed(0)

    def weight() -> billhook.PackedWeight:
        return draw(find_format("u4b8"), K, N, 128, dtype=torch.bfloat16, generator=generator).pack()

    a = torch.randn(m, K, device=device, dtype=torch.bfloat16)
    dense, experts = weight(), billhook.ops.stack_weights([weight() for _ in range(EXPERTS)])
    bias, out = torch.zeros(N, device=device, dtype=a.dtype), torch.empty(m, N, device=device, dtype=a.dtype)
    plain = torch.zeros(K, N, device=device, dtype=a.dtype)
    ids = torch.randint(0, EXPERTS, (m, TOP_K), device=device)
    routing = billhook.route(ids, EXPERTS, billhook.moe_block_m(experts, m, TOP_K), complete=True)
    head = (a, dense.codes, dense.scales, N, 128, "u4b8")
    return {
        "torch.matmul": lambda: a @ plain,
        "billhook.gemm": lambda: billhook.gemm(a, dense),
        "billhook.gemm, bias": lambda: billhook.gemm(a, dense, bias),
        "billhook.gemm, out": lambda: billhook.gemm(a, dense, out=out),
        "torch.ops.billhook.gemm": lambda: torch.ops.billhook.gemm(*head),
        "billhook.moe_gemm": lambda: billhook.moe_gemm(a, experts, routing),
        "quantize_activations": lambda: billhook.quantize_activations(a, torch.int8),
    }


def main() -> None:
    """Measure and print one line for each call and m."""
    parser = argparse.ArgumentParser(description="Measure what a call costs the host.")
    parser.add_argument("--m", default="1,512", help="rows of A, such as 1,512")
    rows = [int(one) for one in parser.parse_args().m.split(",")]
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        do_without_gpu()
    device, wait = ("cuda", torch.cuda.synchronize) if on_gpu else ("cpu", lambda: None)
    where = torch.cuda.get_device_name() if on_gpu else "no GPU: a driver that does nothing"
    print(f"microseconds of host time a call, n = k = {N}, bf16 x u4b8; torch {torch.__version__}; {where}")
    with torch.inference_mode():
        for m in rows:
            for name, call in contestants(m, device).items():
                if on_gpu or not name.startswith("torch.matmul"):
                    print(f"m={m:<5} {name:26} {measure(call, wait):6.1f}", flush=True)


if __name__ == "__main__":
    main()
