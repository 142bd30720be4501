"""Our functions of one PTX instruction become the same machine code as CUTLASS's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest
from cpu.cutlass.referee import Compiled, compile_source

_HEAD = """
#define CUTLASS_ENABLE_GDC_FOR_SM90
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/grid_dependency_control.h>
#include <cutlass/arch/reg_reconfig.h>
#include "billhook/mma/wgmma.cuh"
#include "billhook/ptx/async_copy.cuh"
#include "billhook/ptx/grid.cuh"
#include "billhook/ptx/memory.cuh"
#include "billhook/ptx/warpgroup.cuh"
using namespace billhook;
namespace gmma = cute::SM90::GMMA;
template <class T>
__device__ T* at(u32 shared) { return static_cast<T*>(__cvta_shared_to_generic(shared)); }
"""
_PARAMETERS = "u32 place, u32 barrier, u32 a, u32 b, const void* from, u64* out"


@dataclass(frozen=True)
class Pair:
    """The same, said by us and by CUTLASS.

    Args:
        name: Of the pair.
        ours: Statements on `_PARAMETERS`.
        theirs: Statements.
    """

    name: str
    ours: str
    theirs: str

    def __str__(self) -> str:
        return self.name


PAIRS = [
    Pair(
        "mbarrier_arrive_expect",
        "ptx::mbarrier_arrive_expect(barrier, a);",
        "cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(at<uint64_t>(barrier), a);",
    ),
    Pair(
        "mbarrier_arrive_copied",
        "ptx::mbarrier_arrive_copied(barrier);",
        "cutlass::arch::cpasync_barrier_arrive_noinc(at<uint64_t>(barrier));",
    ),
    Pair("fence_proxy_async", "ptx::fence_proxy_async();", "cutlass::arch::fence_view_async_shared();"),
    Pair(
        "bulk_copy",
        "ptx::bulk_copy(place, from, a, barrier);",
        "cute::SM90_BULK_COPY_G2S::copy(from, at<uint64_t>(barrier), at<void>(place), a);",
    ),
    Pair(
        "prefetch_tensor_map",
        "ptx::prefetch_tensor_map(from);",
        "cute::prefetch_tma_descriptor(static_cast<const cute::TmaDescriptor*>(from));",
    ),
    Pair("cp_async_commit", "ptx::cp_async_commit();", "cute::cp_async_fence();"),
    Pair("cp_async_wait", "ptx::cp_async_wait<1>();", "cute::cp_async_wait<1>();"),
    Pair(
        "stmatrix_x4_transposed",
        "ptx::stmatrix_x4_transposed(place, a, b, barrier, a + b);",
        "cute::SM90_U16x8_STSM_T::copy(a, b, barrier, a + b, *at<cute::uint128_t>(place));",
    ),
    Pair(
        "ldmatrix_x4",
        "const u32x4 v = ptx::ldmatrix_x4(place); out[0] = v.x + 2 * v.y + 3 * v.z + 4 * v.w;",
        "u32 x, y, z, w; cute::SM75_U32x4_LDSM_N::copy(*at<cute::uint128_t>(place), x, y, z, w);"
        "out[0] = x + 2 * y + 3 * z + 4 * w;",
    ),
    Pair("cluster_sync", "ptx::cluster_sync();", "cute::cluster_sync();"),
    Pair("take_registers", "ptx::take_registers<224>();", "cutlass::arch::warpgroup_reg_alloc<224>();"),
    Pair("give_up_registers", "ptx::give_up_registers<56>();", "cutlass::arch::warpgroup_reg_dealloc<56>();"),
    Pair("sync_some", "ptx::sync_some<128>(3);", "cutlass::arch::NamedBarrier::sync(128, 3u - 8);"),
    Pair("launch_dependents", "ptx::launch_dependents();", "cutlass::arch::launch_dependent_grids();"),
    Pair(
        "wait_for_prerequisites",
        "ptx::wait_for_prerequisites();",
        "cutlass::arch::wait_on_dependent_grids();",
    ),
]

# Those widths of `Wgmma` that need no further 3 MB of headers, and what CuTe calls its types.
_WIDTHS = (16, 32, 64, 96, 128, 192, 256)
_KINDS = {
    "f16": "16_F32F16F16",
    "bf16": "16_F32BF16BF16",
    "e4m3fn": "32_F32E4M3E4M3",
    "s8": "32_S32S8S8",
}


def wgmma_pair(element: str, tokens: int) -> Pair:
    """Return D = A B (+ D) with A and D from and to memory."""
    kind, integer = _KINDS[element], element == "s8"
    atom = f"gmma::MMA_64x{tokens}x{kind}_RS{'_TN' if kind.startswith('32') else ''}"
    major = "" if kind.startswith("32") else "<gmma::Major::K, gmma::Major::K>"
    one_more = "<>" if kind.startswith("32") and not integer else ""
    cast = "reinterpret_cast<u32&>" if integer else ""
    sums = ", ".join(f"{cast}(d[{i // 4}].v[{i % 4}])" for i in range(tokens // 2))
    before = (
        f"using D = SumOf<{element}>::Type; D d[{tokens // 8}]; Fragment f;"
        f"for (int i = 0; i < {tokens // 8}; ++i) d[i] = static_cast<const D*>(from)[i];"
        "for (int i = 0; i < 4; ++i) f.r[i] = a + i * b; wgmma_fence();"
    )
    after = f"wgmma_commit(); wgmma_wait<0>(); for (int i = 0; i < {tokens // 8}; ++i) ((D*)out)[i] = d[i];"
    return Pair(
        f"wgmma_{element}_{tokens}",
        f"{before} Wgmma<{element}, {tokens // 8}>::run(d, f, out[0], barrier); {after}",
        f"{before} {atom}{major or one_more}::fma(f.r[0], f.r[1], f.r[2], f.r[3], out[0], {sums}, "
        f"barrier ? gmma::ScaleOut::One : gmma::ScaleOut::Zero); {after}",
    )


PAIRS += [wgmma_pair(element, tokens) for element in _KINDS for tokens in _WIDTHS]


# Pairs that cannot be the same machine code: CUTLASS asserts what it is given, branches where ours are
# predicated, has cp.async fetch 128 bytes into L2, and tells TMA how long to keep what it reads. The
# instructions and their operands are the same.
SPELLED = [
    Pair(
        "mbarrier_init",
        "ptx::mbarrier_init(barrier, a);",
        "cutlass::arch::ClusterBarrier::init(at<uint64_t>(barrier), a);",
    ),
    Pair(
        "mbarrier_arrive_cluster",
        "ptx::mbarrier_arrive_cluster(barrier, a, b);",
        "cutlass::arch::ClusterBarrier::arrive(at<uint64_t>(barrier), a, b);",
    ),
    Pair(
        "mbarrier_wait",
        "ptx::mbarrier_wait(barrier, a);",
        "cute::wait_barrier(*at<uint64_t>(barrier), a);",
    ),
    Pair(
        "cp_async_16",
        "ptx::cp_async_16(place, from, a ? 16 : 0);",
        "cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy("
        "*static_cast<const cute::uint128_t*>(from), *at<cute::uint128_t>(place), a);",
    ),
    Pair(
        "tensor_copy",
        "ptx::tensor_copy(place, from, a, b, barrier);",
        "cute::SM90_TMA_LOAD_2D::copy(from, at<uint64_t>(barrier), uint64_t(out), at<void>(place), a, b);",
    ),
    Pair(
        "tensor_copy_multicast",
        "ptx::tensor_copy_multicast(place, from, a, b, barrier, 3);",
        "cute::SM90_TMA_LOAD_MULTICAST_2D::copy("
        "from, at<uint64_t>(barrier), 3, uint64_t(out), at<void>(place), a, b);",
    ),
]
_MEMORY_INSTRUCTION = re.compile(r"^(?:@\w+ )?((?:mbarrier|mapa|cp)\.[^;]*);", re.MULTILINE)


def spelled(ptx: str, kernel: str) -> list[str]:
    """Return what a kernel does with barriers and copies, by its parameters, without guards and hints."""
    body = ptx[ptx.index(f".entry {kernel}(") :]
    body = re.sub(r"[ \t]+", " ", body[: body.index("\n}")])
    parameters = dict(re.findall(rf"ld\.param\.\w+ (%\w+), \[{kernel}_param_(\d)\]", body))
    found = []
    for line in _MEMORY_INSTRUCTION.findall(re.sub(r"\n ", "\n", body)):
        text = re.sub(r"%\w+", lambda one: f"parameter {parameters.get(one[0], '?')}", line)
        text = text.replace(".shared.", ".shared::cta.").replace(".L2::128B", "")
        if ".L2::cache_hint" in text:
            text = re.sub(r", parameter 5$", "", text.replace(".L2::cache_hint", ""))
        found.append(re.sub(r"\b(there|remAddr32|done|P1)\b", "local", text))
    return found


@cache
def compiled() -> Compiled:
    """All pairs, compiled at once: most of the time goes into reading the headers."""
    kernels = (
        f'extern "C" __global__ void {side}_{pair}({_PARAMETERS}) {{ {getattr(pair, side)} }}'
        for pair in [*PAIRS, *SPELLED]
        for side in ("ours", "theirs")
    )
    return compile_source("\n".join([_HEAD, *kernels]))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_machine_code_is_that_of_cutlass(pair: Pair) -> None:
    assert compiled().machine_code(f"ours_{pair}") == compiled().machine_code(f"theirs_{pair}")


@pytest.mark.parametrize("pair", SPELLED, ids=str)
def test_the_instructions_and_operands_are_those_of_cutlass(pair: Pair) -> None:
    ours = spelled(compiled().ptx, f"ours_{pair}")
    assert ours and ours == spelled(compiled().ptx, f"theirs_{pair}")
