"""What Python knows of the kernels is what their headers say: the compiler is asked to agree."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import billhook
from billhook import families
from billhook.arch import parse
from billhook.build.headers import included_headers
from billhook.build.nvrtc import compile_text
from billhook.catalog import Shape, deepest, load
from billhook.config import GemmTypes, KernelConfig, Tile
from billhook.dispatch import launch, params, quantizing
from billhook.dtypes import BF16, U4B8
from billhook.errors import CompileError
from billhook.families import machete, marlin
from billhook.weights import FORMATS

HEADERS = Path(billhook.__file__).parent / "cuda/billhook/problem"
ARCH = parse("9.0a")
TYPES = GemmTypes(BF16, U4B8, BF16, BF16)
AT_A_TIME = 300  # kernels: the compiler's time grows as the square of their number
UNLISTED = (  # in the catalog: four consumers and four CTAs; and warpgroups that take tiles in turns
    Tile(64, 256, 128, 5, 4),
    Tile(96, 128, 128, 4, pingpong=True),
    Tile(64, 192, 64, 6, 2, pingpong=True),
    Tile(16, 256, 128, 8, pingpong=True),
)
LEGAL = [
    config
    for shape in (*load().shapes, *(Shape("machete", tile) for tile in UNLISTED))
    for one in load().formats
    for types in one.types()
    if types.c == BF16  # sizes are those of f16
    for group in one.group_sizes
    for indexed, grouped in ((False, False), (True, False), (True, True))
    if (kernel := replace(shape.kernel(types, group, indexed, ARCH), grouped=grouped))
    and families.illegal(config := deepest(kernel)[0]) is None
]


def agree(text: str) -> None:
    """Compile a source that holds nothing but static assertions."""
    compile_text("agree.cu", text, included_headers(text), ARCH)


def test_the_struct_of_arguments_is_packed_as_the_compiler_lays_it_out() -> None:
    lines = ['#include "billhook/problem/params.cuh"', "using P = billhook::GemmParams;"]
    lines.append(f"static_assert(sizeof(P) == {params.LAYOUT.size});")
    names = (*params.POINTERS, *params.NUMBERS)
    for at, name in enumerate(names):
        offset = 8 * min(at, len(params.POINTERS)) + 4 * max(0, at - len(params.POINTERS))
        lines.append(f"static_assert(__builtin_offsetof(P, {name}) == {offset});")
    agree("\n".join(lines))
    body = re.search(r"struct GemmParams \{(.*?)\n\};", (HEADERS / "params.cuh").read_text(), re.DOTALL)
    assert body is not None
    assert re.findall(r"^  [^;]*?(\w+);", body[1], re.MULTILINE) == list(names)


def test_memory_threads_and_rounding_are_those_of_the_kernel() -> None:
    assert len(LEGAL) > 50
    assert {config.family for config in LEGAL} == {"marlin", "machete"}
    assert {config.tile.tile_n for config in LEGAL if config.tile.pingpong} == {128, 192, 256}
    for first in range(0, len(LEGAL), AT_A_TIME):
        agree("\n".join(_sizes(LEGAL[first : first + AT_A_TIME])))


def _sizes(configs: list[KernelConfig]) -> list[str]:
    """Return static assertions that kernels are of the sizes that their families tell."""
    lines = [f'#include "billhook/kernel/{family}.cuh"' for family in ("marlin", "machete")]
    lines.append("using namespace billhook;")
    for config in configs:
        tile = config.tile
        sizes = [tile.tile_m, tile.tile_n, tile.tile_k, tile.stages]
        if config.family == "machete":
            flags = [config.indexed, config.grouped]
            sizes += [tile.cluster, int(tile.pingpong), config.group_size, *map(int, flags)]
        else:
            sizes += [config.group_size, int(config.indexed)]
        types = f"{config.types.a}, {config.types.b}, {config.types.s}"
        types += f", {config.types.c}" if config.family == "machete" else ""
        kernel = f"{config.family}::Config<{types}, {', '.join(map(str, sizes))}>"
        lines += [
            f'static_assert({kernel}::shared_bytes == {families.shared_memory(config)}, "{config}");',
            f'static_assert({kernel}::threads == {families.threads(config)}, "{config}");',
        ]
        if config.family == "machete":
            lines.append(f'static_assert({kernel}::sums == {machete.sums(config)}, "{config}");')
        if config.types == TYPES:
            rounds = str(families.rounds_weights(config)).lower()
            lines.append(f"static_assert((!{kernel}::scale_sums && !{kernel}::channel_scales) == {rounds});")
        if config.family == "marlin":
            scales_sums = str(marlin.scales_sums(config)).lower()
            lines.append(f'static_assert({kernel}::scale_sums == {scales_sums}, "{config}");')
    return lines


def test_what_is_known_of_element_types_is_what_headers_know() -> None:
    lines = ['#include "billhook/kernel/marlin.cuh"', "using namespace billhook;"]
    for one in FORMATS.values():
        lines.append(f"static_assert(bits<{one.weight}> == {one.weight.bits});")
        lines.append(f"static_assert(has_zeros<{one.weight}> == {str(one.weight.zero_point).lower()});")
        lines.append(f"static_assert(block_bytes<{one.weight}> == {64 * 64 * one.weight.bits // 8});")
        for scale in (one.scale,) if one.scale else one.activations:
            lines.append(f"static_assert(row_bytes<{scale}> == {64 * scale.bits // 8});")
    for name, held in FORMATS.items():
        lines += [
            f"static_assert(has_global_scale<{held.scale_type(a)}> == {str(held.global_scale).lower()}, "
            f'"{name}");'
            for a in held.activations
        ]
    agree("\n".join(lines))


def test_a_disagreement_would_be_found() -> None:
    config = replace(LEGAL[0], group_size=-1)
    with pytest.raises(CompileError):
        agree(
            '#include "billhook/kernel/marlin.cuh"\n'
            "using namespace billhook;\n"
            "static_assert(marlin::Config<bf16, u4b8, bf16, 16, 128, 256, 4, -1, 0>"
            f"::shared_bytes == {families.shared_memory(config) + 1});"
        )


def test_the_routing_kernel_is_launched_with_its_own_constants() -> None:
    lines = [
        '#include "billhook/kernel/route.cuh"',
        f"static_assert(billhook::route::kThreads == {launch.ROUTE_THREADS});",
        f"static_assert(billhook::route::kMaxExperts == {launch.MAX_EXPERTS});",
    ]
    agree("\n".join(lines))


def test_the_grouping_kernel_is_launched_with_its_own_constants() -> None:
    lines = [
        '#include "billhook/kernel/group.cuh"',
        "using P = billhook::GroupParams;",
        f"static_assert(billhook::group::kThreads == {launch.GROUP_THREADS});",
        f"static_assert(sizeof(P) == {launch.GROUP_LAYOUT.size});",
    ]
    names = ("a", "grouped", "sorted_token_ids", "num_tokens_padded", "rows", "chunks", "stride", "top_k")
    for name, at in zip(names, (0, 8, 16, 24, 32, 36, 40, 44), strict=True):
        lines.append(f"static_assert(__builtin_offsetof(P, {name}) == {at});")
    agree("\n".join(lines))


def test_the_quantizing_kernels_are_launched_with_their_own_constants() -> None:
    lines = [
        '#include "billhook/kernel/quantize.cuh"',
        "using P = billhook::quantize::Params;",
        f"static_assert(billhook::quantize::kThreads == {quantizing.QUANTIZE_THREADS});",
        f"static_assert(sizeof(P) == {quantizing.LAYOUT.size});",
    ]
    names = ("x", "codes", "scales", "given", "stride", "rows", "k", "number", "aligned")
    for name, at in zip(names, (0, 8, 16, 24, 32, 40, 44, 48, 52), strict=True):
        lines.append(f"static_assert(__builtin_offsetof(P, {name}) == {at});")
    agree("\n".join(lines))
