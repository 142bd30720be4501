"""Random problems for the GPU tests, their float64 results, and the check of an output against its bound."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch

import billhook
from billhook.build import Cache, cache_folder, compile_units, kernel_unit
from billhook.build.compile import default_jobs
from billhook.catalog import Shape, deepest, load
from billhook.config import GemmTypes, KernelConfig, Tile
from billhook.driver import native_arch
from billhook.dtypes import BF16, F16
from billhook.families import rounds_weights
from billhook.formats import reference
from billhook.formats.blocks import count_groups
from billhook.formats.host import dequantize
from billhook.formats.packed import find_format
from billhook.ops import PackedWeight, unpack_weight

ELEMENTS = {torch.float16: F16, torch.bfloat16: BF16}
GROUPS = (-1, 32, 64, 128)
# Beside what the catalog lists: the smallest, and the largest that warpgroups take in turns.
OTHERS = tuple(
    Shape("machete", tile)
    for tile in (
        Tile(16, 128, 256, 4),
        Tile(96, 128, 128, 5, pingpong=True),
        Tile(48, 256, 64, 6, pingpong=True),
    )
)


def tiles(dtype: torch.dtype, group: int, indexed: bool, weights: str = "u4b8") -> list[KernelConfig]:
    """Return the catalog's tiles, and some more, that are legal here, as kernels for a format of weights."""
    element, held = ELEMENTS[dtype], find_format(weights)
    types = GemmTypes(element, held.weight, held.scale_type(element), element)
    arch = native_arch(torch.cuda.get_device_capability())
    found = [deepest(shape.kernel(types, group, indexed, arch)) for shape in (*load().shapes, *OTHERS)]
    return list(dict.fromkeys(config for config, why_not in found if why_not is None))


@cache
def compiled(dtype: torch.dtype, group: int, indexed: bool, weights: str = "u4b8") -> list[KernelConfig]:
    """Return `tiles`, all compiled into the cache, in parallel."""
    configs = tiles(dtype, group, indexed, weights)
    compile_all(configs)
    return configs


def compile_all(configs: Iterable[KernelConfig]) -> None:
    """Compile kernels into the cache, in parallel."""
    _, failures = compile_units(
        [kernel_unit(config) for config in configs], Cache(cache_folder()), default_jobs()
    )
    assert not failures, "\n\n".join(f"{name}: {error}\n{error.log}" for name, error in failures.items())


def draw_weight(k: int, n: int, group: int, dtype: torch.dtype, experts: int = 0) -> PackedWeight:
    """Return a random packed weight on the GPU: every code occurs."""
    head = (experts,) if experts else ()
    codes = torch.randint(0, 16, (*head, k, n), dtype=torch.uint8, device="cuda")
    codes.reshape(-1)[:16] = torch.arange(16, dtype=torch.uint8, device="cuda")
    scales = torch.randn(*head, count_groups(k, group), n, device="cuda") / 16
    return billhook.pack_weight(codes, scales.to(dtype), group)


def exact(weight: PackedWeight) -> np.ndarray:
    """Return the weights in float64 [.., k, n]."""
    return dequantize(unpack_weight(weight), np.float64)


def host(tensor: torch.Tensor | None) -> np.ndarray | None:
    """Return a tensor's numbers in float64 on the host."""
    return None if tensor is None else tensor.double().cpu().numpy()


def multiply(a: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> reference.Reference:
    """Return `reference.gemm` of tensors, computed where they lie, in float64.

    Args:
        a: Activations [m, k].
        right: Exact weights, float64 [k, n].
        bias: [n], or None.
    """
    left = a.double()
    value, magnitude = left @ right, left.abs() @ right.abs()
    if bias is not None:
        value, magnitude = value + bias.double(), magnitude + bias.double().abs()
    sums = left.abs().sum(1, keepdim=True)
    return reference.Reference(*(one.cpu().numpy() for one in (value, magnitude, sums)))


def check(
    out: torch.Tensor, ref: reference.Reference, weight: PackedWeight, config: KernelConfig | None, what: str
) -> None:
    """Fail, naming the worst element, unless every element is within its bound.

    Without a `config` the bound is that of kernels that round weights.
    """
    rounded = weight.group_size != -1 if config is None else rounds_weights(config)
    bound = reference.error_bound(weight.k, weight.group_size, ELEMENTS[out.dtype], rounded)
    got = out.double().cpu().numpy()
    assert got.shape == ref.value.shape, f"{what}: shape {got.shape}, not {ref.value.shape}"
    allowed = bound.allowed(ref.value, ref.magnitude, ref.activations)
    excess = np.abs(got - ref.value) / allowed
    bad = ~(excess <= 1)  # NaN is bad
    if bad.any():
        rows, columns = np.nonzero(bad)
        at = (rows[0], columns[0])
        raise AssertionError(
            f"{what}: {bad.sum()} of {bad.size} elements out of bounds; first [{at[0]}, {at[1]}] is "
            f"{got[at]:g}, not {ref.value[at]:g} +- {allowed[at]:g}; "
            f"rows {_spans(rows)}, columns {_spans(columns)}"
        )


def _spans(numbers: np.ndarray) -> str:
    """Write a set of numbers as ranges, so that a failing tile, warp or tail can be recognised."""
    found: list[list[int]] = []
    for number in np.unique(numbers).tolist():
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    words = [f"{first}-{last}" if last > first else f"{first}" for first, last in found]
    return ", ".join(words[:12]) + (" ..." if len(words) > 12 else "")
