"""The model of the tree's host code covers every call of it."""

from __future__ import annotations

import pytest
from cpu.vllm import host
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.arch import parse
from billhook.vllm import host_model
from billhook.vllm.host_model import Gemm, Gpu, Lookup, Routing, Tile, shared_memory

SMEM = {name: parse(name).limits.smem_per_cta for name in ("7.5", "8.0", "8.6", "9.0")}


@st.composite
def calls(draw: st.DrawFn) -> host.Call:
    group_size = draw(st.sampled_from([-1, 0, 16, 32, 64, 128]))
    arch = draw(st.sampled_from(sorted(SMEM)))
    return host.Call(
        n=64 * draw(st.integers(1, 12) | st.sampled_from([64, 96, 448])),
        k=128 * draw(st.integers(1, 12)) if group_size == 128 else 64 * draw(st.integers(1, 24)),
        a_bits=draw(st.sampled_from([8, 16])),
        b_bits=draw(st.sampled_from([4, 8])),
        group_size=group_size,
        zero_points=draw(st.booleans()),
        smem=SMEM[arch],
        stages=2 if arch == "7.5" else 4,
        sms=draw(st.integers(1, host_model.MOST_SMS)),
    )


def instantiated(kernel: host.Kernel) -> bool:
    """The releases' pruning of tiles: the wide ones are for one block of rows, or for more."""
    thread_k, thread_n, threads, m_blocks, _ = kernel
    return threads == 128 or (thread_k, thread_n) == ((128, 128) if m_blocks == 1 else (64, 256))


def modelled(call: host.Call) -> tuple[Gemm, Gpu]:
    gemm = Gemm(call.n, call.k, call.a_bits, call.b_bits, call.group_size, call.zero_points)
    return gemm, Gpu(call.smem, call.stages)


def exists(lookup: Lookup) -> bool:
    return instantiated((*lookup.tile, lookup.m_blocks, lookup.m_block_size_8))


def flat(lookups: set[Lookup]) -> set[host.Kernel]:
    return {(*one.tile, one.m_blocks, one.m_block_size_8) for one in lookups}


@settings(max_examples=400)
@given(call=calls(), m=st.integers(1, 80) | st.integers(1, 20000), more=st.integers(0, 1000))
def test_every_dense_launch_is_among_the_lookups(call: host.Call, m: int, more: int) -> None:
    launched = host.dense(m, call, instantiated)
    assert set(launched or ()) <= flat(host_model.dense(*_split(call, m + more)))


@settings(max_examples=100)
@given(call=calls(), rows=st.integers(1, 140))
def test_no_dense_lookup_is_without_a_launch(call: host.Call, rows: int) -> None:
    gemm, gpu = modelled(call)
    launched: set[host.Kernel] = set()
    for sms in (1, host_model.MOST_SMS):
        of_sms = host.Call(**{**vars(call), "sms": sms})
        each = [host.dense(m, of_sms, instantiated) for m in range(1, rows + 1)]
        if None in each:  # the host gives up: which kernels it would have gone on with is anyone's guess
            return
        launched.update(*(one or () for one in each))
    assert flat(host_model.dense(gemm, rows, gpu, exists)) == launched


@settings(max_examples=400)
@given(
    call=calls(),
    tokens=st.integers(1, 5000),
    more=st.integers(0, 100),
    num_experts=st.integers(1, 256),
    top_k=st.integers(1, 10),
)
def test_every_moe_lookup_is_found(
    call: host.Call, tokens: int, more: int, num_experts: int, top_k: int
) -> None:
    gemm, gpu = modelled(call)
    found = host_model.moe(gemm, tokens + more, Routing(num_experts, top_k), gpu, exists)
    assert set(host.moe(tokens, num_experts, top_k, call, instantiated)) <= flat(found)


def _split(call: host.Call, rows: int) -> tuple[Gemm, int, Gpu, host_model.Exists]:
    gemm, gpu = modelled(call)
    return gemm, rows, gpu, exists


@given(call=calls(), m_blocks=st.integers(1, 4), moe=st.booleans())
def test_shared_memory_is_estimated_as_the_host_does(call: host.Call, m_blocks: int, moe: bool) -> None:
    gemm, gpu = modelled(call)
    for tile in host.tiles(m_blocks):
        expected = call.bytes((*tile, m_blocks, False), moe)
        assert shared_memory(gemm, Tile(*tile), m_blocks, gpu.stages, moe) == expected


@pytest.mark.parametrize("group_size", [32, 64])
def test_eight_bit_weights_in_groups_of_32_never_fit_99_kib_at_full_height(group_size: int) -> None:
    gemm = Gemm(n=4096, k=4096, a_bits=16, b_bits=8, group_size=group_size, zero_points=False)
    fit = host_model.fits(gemm, Tile(64, 256, 256), 4, Gpu(99 * 1024, 4), moe=False)
    assert fit == (group_size == 64)


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "a_bits", "size"),
    [
        (1, 8, 2, 16, 8),
        (28, 8, 2, 16, 8),  # 7 rows an expert: less than 0.9 * 8
        (29, 8, 2, 16, 16),  # 7.25
        (57, 8, 2, 16, 16),
        (58, 8, 2, 16, 32),
        (230, 8, 2, 16, 64),
        (100000, 8, 2, 16, 64),
        (1, 8, 2, 8, 16),
    ],
)
def test_block_sizes(tokens: int, num_experts: int, top_k: int, a_bits: int, size: int) -> None:
    assert host_model.moe_block_size(tokens, Routing(num_experts, top_k), a_bits) == size
