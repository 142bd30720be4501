"""Time quantizing activations on the GPU, beside the GEMM that takes them.

Run as PYTHONPATH=src python bench/quantize.py [--rows 16,256] [--k 4096,8192] [--n N] [--record FILE].
Activations are bf16, weights u4b8 with channel scales [k, n]. All calls lie in CUDA graphs, which take
turns; times are medians over the rounds, for a call. `quantize_us` is with activations that were just read
(from the L2 cache where they fit), `cold_us` with so many in turn that L2 does not hold them; `floor_us` is
what reading them and writing codes and scales once takes at this GPU's bandwidth. `both_us` is quantizing and
the GEMM, one behind the other. `torch_us` is the same codes by torch's own operators. Codes of the last rows
are compared with the host's. Without a GPU (--device cpu) the host quantizes, and its clock tells the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import billhook
from billhook.formats.packed import find_format
from billhook.measure.contestant import Launch
from billhook.measure.machine import append_lines
from billhook.measure.roofline import peak_of
from billhook.measure.timing import REST, calls_for, capture, interleave
from billhook.ops import on_cpu
from billhook.ops.drawn import draw

DTYPE = torch.bfloat16
NARROW = {"e4m3fn": torch.float8_e4m3fn, "s8": torch.int8}
STATIC_SCALE = 0.01
COMPARED = 64  # rows
MOST_COPIES = 1024
TORCH_CALLS = 2  # in a graph: they are slow, and take much memory


@dataclass(frozen=True)
class Case:
    """Activations to be quantized, and the weight that they multiply.

    Args:
        x: Equal activations [rows, k], so many that L2 does not hold them all.
        weight: The packed weight.
        dtype: What they are quantized to.
        scale: A static scale for all, or None for one for each row.
    """

    x: list[torch.Tensor]
    weight: billhook.PackedWeight
    dtype: torch.dtype
    scale: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that are read and written once."""
        rows, k = self.x[0].shape
        return int(self.x[0].nbytes + rows * k + 4 * rows)

    def quantize(self, copy: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize as users do."""
        return billhook.quantize_activations(self.x[copy], self.dtype, self.scale)

    def plainly(self, copy: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantize by torch's own operators."""
        return on_cpu.quantize_activations(self.x[copy], self.dtype, self.scale)

    def multiply(self, quantized: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Multiply codes and scales."""
        return billhook.gemm(quantized[0], self.weight, token_scales=quantized[1])


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every case, print, and record if asked."""
    options = parse(arguments)
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    names = ("quantize", "cold", "floor", "gemm", "both", "torch")
    print("rows      k  to      scale  " + "".join(f"{name + ' us':>12}" for name in names) + "    GB/s")
    found = []
    for k in options.k:
        weight = draw(find_format("u4b8"), k, options.n, -1, dtype=DTYPE, generator=generator).pack()
        for rows in options.rows:
            for name, dtype in NARROW.items():
                for scale in (None, torch.tensor([STATIC_SCALE], device=device)):
                    case = Case(draw_activations(rows, k, generator), weight, dtype, scale)
                    check(case)
                    how = "token" if scale is None else "static"
                    times = time_on_gpu(case, options) if device.type == "cuda" else time_on_host(case)
                    one = {"rows": rows, "k": k, "n": options.n, "to": name, "scale": how, **times}
                    one["gb_s"] = round(case.nbytes / times["cold_us"] / 1000, 1)
                    numbers = "".join(f"{times[f'{name}_us']:12.2f}" for name in names)
                    print(f"{rows:<5}{k:>6}  {name:8}{how:7}{numbers}{one['gb_s']:8.0f}", flush=True)
                    found.append(one)
                    if options.record:  # at once: a run that is cut off loses nothing
                        append_lines(options.record, [one], "bench/quantize.py", device)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""

    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=numbers, default=[16, 256, 4096])
    parser.add_argument("--k", type=numbers, default=[4096, 8192, 14336])
    parser.add_argument("--n", type=int, default=8192, help="output features of the GEMM")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--bandwidth", type=float, help="of this GPU, in bytes per second, if it is not known"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", type=Path, help="append the results to this file, as JSON lines")
    return parser.parse_args(arguments)


def draw_activations(rows: int, k: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Draw activations, and copy them until L2 does not hold them."""
    device = generator.device
    x = torch.randn(rows, k, device=device, generator=generator).to(DTYPE)
    if device.type != "cuda":
        return [x]
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return [x, *(x.clone() for _ in range(min(MOST_COPIES - 1, 2 * l2_bytes // x.nbytes)))]


def check(case: Case) -> None:
    """Stop unless the last rows are quantized as on the host."""
    scale = None if case.scale is None else case.scale.cpu()
    want = billhook.quantize_activations(case.x[0][-COMPARED:].cpu(), case.dtype, scale)
    for mine, theirs in zip(case.quantize(), want, strict=True):
        if not torch.equal(mine[-COMPARED:].cpu().view(torch.uint8), theirs.view(torch.uint8)):
            sys.exit(f"{tuple(case.x[0].shape)} to {case.dtype}: the last rows differ from the host's")


def time_on_gpu(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Return microseconds of each contestant and of the floor."""
    peak = peak_of(torch.cuda.get_device_name(), options.bandwidth, 1.0 if options.bandwidth else None)
    floor, held = 1e6 * case.nbytes / peak.bandwidth, case.quantize()
    calls, copies = calls_for(max(floor, 1.0), 1), len(case.x)
    stream = torch.cuda.Stream()

    def graph(call: Callable[[int], torch.Tensor], calls: int = calls, copies: int = 1) -> Any:
        return capture(Launch(call), -(-calls // copies) * copies, copies, stream)

    graphs = {
        "quantize": graph(lambda copy: case.quantize()[0]),
        "cold": graph(lambda copy: case.quantize(copy)[0], copies=copies),
        "gemm": graph(lambda copy: case.multiply(held)),
        "both": graph(lambda copy: case.multiply(case.quantize())),
        "torch": graph(lambda copy: case.plainly()[0], calls=TORCH_CALLS),
    }
    samples = interleave(list(graphs.values()), options.rounds, REST)
    times = {name: statistics.median(one) for name, one in zip(graphs, samples, strict=True)}
    return {f"{name}_us": round(us, 2) for name, us in {**times, "floor": floor}.items()}


def time_on_host(case: Case) -> dict[str, float]:
    """Return microseconds of each contestant once, by the host's clock."""

    def clock(call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return round((time.perf_counter() - begin) * 1e6, 2)

    held = case.quantize()
    quantize, gemm = clock(case.quantize), clock(lambda: case.multiply(held))
    both = clock(lambda: case.multiply(case.quantize()))
    times = {
        "quantize": quantize,
        "cold": quantize,
        "gemm": gemm,
        "both": both,
        "torch": quantize,
        "floor": 0.0,
    }
    return {f"{name}_us": us for name, us in times.items()}


if __name__ == "__main__":
    with torch.inference_mode():
        main()
