"""Kernels as they are shipped, run on a model of the GPU: what they are given, and whether they are right."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cpu.sm90 import model

from billhook import families
from billhook.build.compile import kernel_unit
from billhook.config import KernelConfig, parse_name
from billhook.dispatch import params
from billhook.dispatch.routing import capacity, route
from billhook.dtypes import E4M3FN, E8M0FNU, S8, DType
from billhook.formats import activations, host, reference
from billhook.formats.blocks import count_groups
from billhook.formats.elements import numpy_dtype
from billhook.formats.packed import find_packed

MARGIN = 128  # bytes of all ones around each array


@dataclass(frozen=True)
class Case:
    """A kernel and what it is given.

    Args:
        kernel: Its name without family and target.
        m: Tokens.
        n: Output features.
        k: Input features.
        grid: CTAs.
        extras: Whether there are a bias, further channel scales and, for MoE, top-k weights.
        shared: Whether CTAs come to share tiles; else they may not.
        experts: Weight matrices; 0 for a dense layer.
        family: The kernel's.
        target: The kernel's.
    """

    kernel: str
    m: int
    n: int
    k: int
    grid: int
    extras: bool = True
    shared: bool = False
    experts: int = 0
    family: str = "machete"
    target: str = "sm90a"

    def __str__(self) -> str:
        return f"{self.kernel}-{self.m}x{self.n}x{self.k}-{self.grid}"

    @cached_property
    def config(self) -> KernelConfig:
        return parse_name(f"{self.family}_{self.kernel}_{self.target}")


def compile_kernels(
    compiler: str,
    configs: Iterable[KernelConfig],
    headers: Path,
    folder: Path,
    *,
    macros: Sequence[str] = (),
) -> Any:
    """Compile kernels for one target into a library for the CPU."""
    configs = sorted(configs)
    (arch,) = {config.arch for config in configs}
    lines = [f'#include "billhook/kernel/{family}.cuh"' for family in {config.family for config in configs}]
    for config in configs:
        assert families.illegal(config) is None
        lines += [f"namespace of_{config} {{", kernel_unit(config).source.text]
        lines += [f"static_assert(Config::threads == {families.threads(config)});"]
        lines += [f"static_assert(Config::shared_bytes == {families.shared_memory(config)});\n}}"]
        lines += [model.entry(config.name, f"of_{config}")]
    return model.compile_library(compiler, "\n".join(lines), headers, folder, arch, macros=macros)


def surrounded(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy, aligned to 128 bytes, with ones around it."""
    memory = np.full(array.nbytes + 3 * MARGIN, 0xFF, np.uint8)
    start = MARGIN + -memory.ctypes.data % MARGIN
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Inputs:
    """Random inputs of a case, and the exact result."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case.m * case.n * case.k)
        self.case, self.config, self.rng = case, case.config, rng
        types, n = self.config.types, case.n
        self.out = numpy_dtype(types.c)
        self.top_k = 2 if case.experts else 1
        self.rows = case.m * self.top_k
        head = (case.experts,) if case.experts else ()
        self.arrays: dict[str, np.ndarray] = {}
        weight = self.draw_weight(head)
        packed = host.pack(weight, types.c)
        self.groups = packed.scales.shape[-2]
        self.arrays |= {"codes": packed.codes, "scales": packed.scales}
        if packed.zeros is not None:
            self.arrays["zeros"] = packed.zeros
        if packed.global_scales is not None:
            self.arrays["global_scales"] = packed.global_scales
        if packed.channel_scales is not None:
            self.arrays["channel_scales"] = packed.channel_scales
        exact = host.dequantize(weight, np.float64)
        bias = topk_weights = None
        if case.extras:
            bias = rng.standard_normal((*head, n)).astype(self.out)
            self.arrays["bias"] = bias
        takes_channels = case.family == "machete" or types.a.bits == 8  # Marlin takes them there alone
        if case.extras and takes_channels and "channel_scales" not in self.arrays:
            channel = rng.uniform(0.5, 2, (*head, n)).astype(np.float32)
            exact = exact * channel[..., None, :]
            self.arrays["channel_scales"] = channel
        a, values = self.draw_activations()
        if not case.experts:
            self.store_activations(a)
            self.exact = reference.gemm(values, exact, bias)
            return
        ids = rng.integers(0, case.experts - 1, (case.m, self.top_k))
        ids[ids == 1] = case.experts - 1  # expert 1 is empty
        ids[rng.random(ids.shape) < 0.1] = -1  # and some slots have no expert
        if case.extras:
            topk_weights = rng.uniform(-1, 1, ids.shape).astype(np.float32)
            self.arrays["topk_weights"] = topk_weights
        self.exact = reference.moe_gemm(values, exact, ids, topk_weights, bias)
        self.missing = (ids < 0).reshape(-1)
        self.store_routing(ids, a)

    def draw_weight(self, head: tuple[int, ...]) -> Any:
        rng, config, case = self.rng, self.config, self.case
        held, size = find_packed(config.types), config.group_size
        shape = (*head, count_groups(case.k, size), case.n)
        codes = rng.integers(0, 2**held.weight.bits, (*head, case.k, case.n), dtype=np.uint8)
        if held.weight == E4M3FN and config.types.a.bits == 8:  # of a few exponents, as activations are
            codes = (rng.integers(6 << 3, 9 << 3, codes.shape) | codes & 0x80).astype(np.uint8)
        elif held.weight == E4M3FN:
            codes[codes & 0x7F == 0x7F] = 0
        if held.scale == E8M0FNU:
            scales = rng.integers(119, 124, shape, dtype=np.uint8)
        elif held.folded:  # of a few exponents, for sums that are exact in float32
            scales = (rng.integers(5 << 3, 9 << 3, shape) | rng.integers(0, 2, shape) << 7).astype(np.uint8)
        elif held.scale == E4M3FN:
            scales = rng.integers(0, 0x7F, shape, dtype=np.uint8)
        else:
            scales = (np.abs(rng.standard_normal(shape)) / 64 + 1e-3).astype(self.out)
            if held.weight != E4M3FN:
                scales *= rng.choice([-1, 1], shape).astype(self.out)
        zeros = (
            rng.integers(0, 2**held.weight.bits, shape, dtype=np.uint8) if held.weight.zero_point else None
        )
        whole = np.full(head or 1, 1.25 / 512, np.float32) if held.global_scale else None
        channels = rng.uniform(0.5, 2, (*head, case.n)).astype(np.float32) if held.folded else None
        return host.join(host.Parts(held.name, codes, scales, zeros, whole, size, channels))

    def draw_activations(self) -> tuple[np.ndarray, np.ndarray]:
        """Return activations [m, k] as they are stored, and their values."""
        rng, case, a = self.rng, self.case, self.config.types.a
        shape = (case.m, case.k)
        if a.bits == 16:
            drawn = rng.standard_normal(shape).astype(self.out)
            return drawn, drawn.astype(np.float64)
        if a == S8:
            codes = rng.integers(-128, 128, shape).astype(np.int8)
        else:  # exponents that keep sums of products exact in float32
            codes = (rng.integers(3 << 3, 11 << 3, shape) | rng.integers(0, 2, shape) << 7).astype(np.uint8)
        scales = rng.uniform(1 / 64, 1 / 16, (case.m, 1)).astype(np.float32)
        self.arrays["token_scales"] = scales
        return codes, activations.dequantize(activations.Activations(a, codes, scales), np.float64)

    def store_activations(self, a: np.ndarray) -> None:
        rows, k = a.shape
        padded = np.full((rows, (k + 16) * a.itemsize), 0xFF, np.uint8)  # NaN, unless integers
        padded[:, : k * a.itemsize] = np.ascontiguousarray(a).view(np.uint8)
        self.arrays["a"] = padded.view(a.dtype)

    def store_routing(self, ids: np.ndarray, a: np.ndarray) -> None:
        tile_m = self.config.tile.tile_m
        sorted_ids, expert_ids, padded = route(ids, self.case.experts, tile_m)
        expert_ids[-1] = -1  # a block that is skipped
        skipped = sorted_ids[-tile_m:]
        self.missing[skipped[skipped < self.rows]] = True
        blocks = capacity(self.rows, self.case.experts, tile_m)
        full = np.full(blocks * tile_m, 0x7EADBEEF, np.int32)
        full[:padded] = sorted_ids
        self.arrays |= {
            "sorted_token_ids": full,
            "expert_ids": np.pad(expert_ids, (0, blocks - len(expert_ids)), constant_values=0x7EADBEEF),
            "num_tokens_padded": np.array([padded], np.int32),
        }
        if self.config.grouped:
            grouped = np.full((len(full), a.shape[1] * a.itemsize), 0xFF, np.uint8).view(a.dtype)
            there = full < self.rows
            grouped[there] = a[full[there] // self.top_k]
            a = grouped
        self.store_activations(a)

    def run(self, library: Any, seed: int) -> np.ndarray:
        """Run the kernel, check what it left in memory, and return D."""
        case, config = self.case, self.config
        ldd = case.n + 16
        d = surrounded(np.full((self.rows, ldd), np.nan, self.out))
        arrays = {name: surrounded(array) for name, array in self.arrays.items()}
        partials = surrounded(np.full(families.workspace(config, case.grid), 0xFF, np.uint8))
        error = self.launch(library, arrays | {"d": d, "partials": partials}, ldd, seed)
        assert error == "", error
        assert (library.count_handed_over() > 0) == case.shared
        for array in (d, partials):
            around: Any = array.base
            start = array.ctypes.data - around.ctypes.data
            assert (around[:start] == 0xFF).all() and (around[start + array.nbytes :] == 0xFF).all()
        assert (partials == 0xFF).all()  # ready for the next launch
        assert np.isnan(d[:, case.n :].astype(np.float32)).all()
        return d[:, : case.n].copy()

    def launch(self, library: Any, arrays: dict[str, np.ndarray], ldd: int, seed: int) -> str:
        """Run the kernel on arrays by the names of its parameters; return what went wrong, or ""."""
        case, config = self.case, self.config
        tile, a, strips, blocks = config.tile, arrays["a"], -(-case.n // 64), -(-case.k // 64)
        addresses = [arrays[name].ctypes.data if name in arrays else 0 for name in params.POINTERS]
        sizes = (self.rows, case.n, case.k, a.shape[1], ldd, strips, blocks, self.groups, self.top_k)
        values = ctypes.create_string_buffer(params.LAYOUT.pack(*addresses, *sizes, case.shared))
        maps = [model.tensor_maps(a, case.k, rows) for rows in families.boxes(config)]
        return model.launch(
            library,
            config.name,
            (ctypes.c_void_p * 3)(ctypes.addressof(values), *map(ctypes.addressof, maps)),
            list(arrays.values()),
            grid=(case.grid, 1),
            cluster=(tile.cluster, 1),
            threads=families.threads(config),
            shared_bytes=families.shared_memory(config),
            seed=seed,
        )


def check(library: Any, case: Case, orders: int = 2) -> None:
    """Fail unless a kernel gives the same result, within its bound, in every order of threads and copies."""
    inputs = Inputs(case)
    first, *others = (inputs.run(library, seed) for seed in range(orders))
    assert all(one.tobytes() == first.tobytes() for one in others)
    got, exact, config = first.astype(np.float64), inputs.exact, case.config
    if case.experts:
        assert np.isnan(got[inputs.missing]).all()
        rows = ~inputs.missing
    else:
        rows = np.ones(len(got), bool)
    narrow: DType | None = S8 if config.types.a.bits == 8 else None  # e4m3 sums are exact here too
    rounded = families.rounds_weights(config)
    summed = find_packed(config.types).summed_group(config.group_size)
    bound = reference.error_bound(case.k, summed, config.types.c, rounded, narrow)
    off = np.abs(got - exact.value)[rows]
    allowed = bound.allowed(exact.value, exact.magnitude, exact.activations)[rows]
    assert (off <= allowed).all(), f"{(~(off <= allowed)).sum()} of {off.size} are wrong"
    assert np.sqrt((off**2).mean() / (exact.value[rows] ** 2).mean()) <= bound.rms
