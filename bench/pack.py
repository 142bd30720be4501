"""Time packing on the GPU: the projections of one decoder layer, as checkpoints store them.

Run as PYTHONPATH=src python bench/pack.py [--size 70b|8b|tiny] [--rounds N] [--record FILE].
Random weights lie on the GPU as GPTQ, AWQ or compressed-tensors words, or one code a byte. `call_us` is what
a caller of `pack_weight` waits for, checks of the values included; `kernel_us` is the kernels alone, torch's
that order the codes of w4a8 among them. Both are medians between CUDA events, the L2 cache written over
before each. `gb_s` is what the kernels read and write once, by their time. The last 64 output features are
compared with the host's packing. Without a GPU (--device cpu) the host packs, and its clock tells the time.
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

from billhook.dtypes import E2M1F, E4M3FN, E8M0FNU
from billhook.formats.blocks import count_groups
from billhook.formats.packed import tensor_shapes
from billhook.measure.machine import append_lines
from billhook.ops import PackedWeight, pack_on_cuda, pack_weight
from billhook.weights import FORMATS, PackedFormat

LAYERS = {  # projection -> output features, input features
    "70b": {  # Llama-3-70B
        "qkv_proj": (10240, 8192),
        "o_proj": (8192, 8192),
        "gate_up_proj": (57344, 8192),
        "down_proj": (8192, 28672),
    },
    "8b": {  # Llama-3.1-8B
        "qkv_proj": (6144, 4096),
        "o_proj": (4096, 4096),
        "gate_up_proj": (28672, 4096),
        "down_proj": (4096, 14336),
    },
    "tiny": {"qkv_proj": (192, 128), "down_proj": (128, 320)},
}
FORMS = {  # how checkpoints hold the codes of a format
    "u4b8": ("gptq", "compressed_tensors", "codes"),
    "u4": ("awq", "gptq", "codes"),
    "fp8": ("codes",),
    "nvfp4": ("compressed_tensors", "codes"),
    "mxfp4": ("compressed_tensors", "codes"),
    "w4a8": ("compressed_tensors", "codes"),
}
DTYPE = torch.bfloat16
COMPARED = 64  # output features
WARM_UP = 2
FLUSH_BYTES = 512 << 20  # ten times the L2 cache; writing them takes longer than the host takes to launch


@dataclass(frozen=True)
class Source:
    """A weight as a checkpoint stores it.

    Args:
        held: Its format.
        stored: How words hold the codes, as `pack_weight` names it.
        n: Output features.
        k: Input features.
        codes: The words, or one code a byte.
        scales: [groups, n].
        zeros: Zero points [groups, n], or None.
        global_scales: float32 [1], or None.
        channel_scales: float32 [n] of folded weights, or None.
    """

    held: PackedFormat
    stored: str
    n: int
    k: int
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    global_scales: torch.Tensor | None
    channel_scales: torch.Tensor | None

    def pack(self) -> PackedWeight:
        """Pack where the tensors lie."""
        return pack_weight(
            self.codes,
            self.scales,
            self.held.group_sizes[0],
            format=self.held.name,
            zeros=self.zeros,
            global_scales=self.global_scales,
            channel_scales=self.channel_scales,
            stored=self.stored,
        )

    def launch(self) -> None:
        """Launch the kernels that packing takes."""
        shapes = tensor_shapes(self.held, self.n, self.k, self.held.group_sizes[0], 0)
        size = (1, self.k, self.n)
        words, _ = pack_on_cuda.pack_codes(self.codes, self.held, self.stored, size, shapes["codes"])
        if self.held.folded:
            pack_on_cuda.order_folded(words)
        pack_on_cuda.pack_groups(self.scales, shapes["scales"])
        if self.zeros is not None:
            pack_on_cuda.pack_groups(self.zeros.to(DTYPE), shapes["scales"])

    def last(self, columns: int) -> Source:
        """Return the last output features, on the host."""
        rows = self.stored == "compressed_tensors"
        words = columns // 8 if self.stored == "awq" else columns
        codes = self.codes[-words:] if rows else self.codes[:, -words:]
        scales = self.scales[:, -columns:].cpu()
        zeros = None if self.zeros is None else self.zeros[:, -columns:].cpu()
        whole = None if self.global_scales is None else self.global_scales.cpu()
        channels = None if self.channel_scales is None else self.channel_scales[-columns:].cpu()
        return Source(self.held, self.stored, columns, self.k, codes.cpu(), scales, zeros, whole, channels)

    @property
    def nbytes(self) -> int:
        """Bytes that the kernels read."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.scales.nbytes)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every format and form, print, and record if asked."""
    options = parse(arguments)
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    found = []
    print(f"{'format':8}{'stored':20}{'projection':14}{'call us':>10}{'kernel us':>11}{'GB/s':>8}")
    for name, forms in FORMS.items():
        for stored in forms:
            layer = {
                projection: measure(draw(FORMATS[name], stored, n, k, generator), options.rounds)
                for projection, (n, k) in LAYERS[options.size].items()
            }
            layer["layer"] = {
                key: round(sum(one[key] for one in layer.values()), 1)
                for key in ("call_us", "kernel_us", "bytes")
            }
            layer["layer"]["gb_s"] = rate(layer["layer"]["bytes"], layer["layer"]["kernel_us"])
            for projection, one in layer.items():
                numbers = f"{one['call_us']:10.1f}{one['kernel_us']:11.1f}{one['gb_s']:8.0f}"
                print(f"{name:8}{stored:20}{projection:14}{numbers}", flush=True)
            found.append({"size": options.size, "format": name, "stored": stored, **layer})
    if options.record:
        append_lines(options.record, found, "bench/pack.py", device)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=LAYERS, default="70b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--record", type=Path, help="append the results to this file, as JSON lines")
    return parser.parse_args(arguments)


def draw(held: PackedFormat, stored: str, n: int, k: int, generator: torch.Generator) -> Source:
    """Draw a weight on the generator's device; codes that no number has are left out."""
    device, bits = generator.device, held.weight.bits

    def integers(low: int, high: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, shape, dtype=dtype, device=device, generator=generator)

    if stored == "codes":
        largest = 0x7E if held.weight == E4M3FN else 2**bits - 1
        by_column = held.weight == E4M3FN  # as checkpoints have them, [n, k]
        codes = integers(0, largest + 1, (n, k) if by_column else (k, n), torch.uint8)
        codes = codes.mT if by_column else codes
    elif stored == "compressed_tensors" and held.weight == E2M1F:
        codes = integers(0, 256, (n, k * bits // 8), torch.uint8)
    else:
        each = 32 // bits
        shapes = {"gptq": (k // each, n), "awq": (k, n // each), "compressed_tensors": (n, k // each)}
        codes = integers(-(2**31), 2**31, shapes[stored], torch.int32)
    groups = (count_groups(k, held.group_sizes[0]), n)
    if held.scale:
        low, high = (110, 130) if held.scale == E8M0FNU else (0, 0x7F)
        scales = integers(low, high, groups, torch.uint8)
    else:
        scales = torch.rand(groups, device=device, generator=generator).to(DTYPE)
    zeros = integers(0, 2**bits, groups, torch.uint8) if held.weight.zero_point else None
    whole = torch.ones(1, device=device) if held.global_scale else None
    channels = torch.rand(n, device=device, generator=generator) if held.folded else None
    return Source(held, stored, n, k, codes, scales, zeros, whole, channels)


def measure(source: Source, rounds: int) -> dict[str, Any]:
    """Check a weight's packing and time it."""
    packed = source.pack()
    check(packed, source)
    written = packed.nbytes - (0 if packed.channel_scales is None else packed.channel_scales.nbytes)
    moved = source.nbytes + written  # scales of channels stay where they are
    del packed
    if source.codes.is_cuda:
        call = time_on_gpu(source.pack, rounds, ahead=False)
        kernel = time_on_gpu(source.launch, rounds, ahead=True)
    else:
        call = kernel = time_on_host(source.pack, rounds)
    return {
        "n": source.n,
        "k": source.k,
        "call_us": round(call, 1),
        "kernel_us": round(kernel, 1),
        "bytes": moved,
        "gb_s": rate(moved, kernel),
    }


def check(packed: PackedWeight, source: Source) -> None:
    """Stop unless the last output features are packed as on the host."""
    wanted = source.last(COMPARED).pack()
    for name in ("codes", "scales", "zeros", "channel_scales"):
        want, got = getattr(wanted, name), getattr(packed, name)
        if want is not None and not torch.equal(got[-len(want) :].cpu(), want):
            sys.exit(f"{source.held.name} from {source.stored}, n={source.n} k={source.k}: {name} differ")


def time_on_gpu(run: Callable[[], Any], rounds: int, *, ahead: bool) -> float:
    """Return the median time between events around a call, in microseconds.

    Args:
        run: The call.
        rounds: How often it is timed.
        ahead: Whether the host may launch while the GPU is still busy, so that only the GPU's time counts.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(WARM_UP + rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        if not ahead:
            torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times[WARM_UP:])


def time_on_host(run: Callable[[], Any], rounds: int) -> float:
    """Return the median time of a call, in microseconds."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def rate(moved: float, microseconds: float) -> float:
    """Return gigabytes per second."""
    return round(moved / microseconds / 1000, 1)


if __name__ == "__main__":
    main()
