"""Dense GEMMs on the GPU."""

from __future__ import annotations

import threading
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from gpu.problems import ELEMENTS, GROUPS, check, compiled, draw_weight, exact, host, multiply  # noqa: E402

import billhook  # noqa: E402
from billhook.errors import InputError, WeightError  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.elements import numpy_dtype  # noqa: E402
from billhook.ops.tensors import to_numpy  # noqa: E402


def activations(m: int, k: int, dtype: Any) -> Any:
    return torch.randn(m, k, device="cuda").to(dtype)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", list(ELEMENTS), ids=str)
@pytest.mark.parametrize(("n", "k"), [(208, 336), (512, 1024)])
def test_every_tile_is_within_its_bound(dtype: Any, group: int, n: int, k: int) -> None:
    weight, bias = draw_weight(k, n, group, dtype), activations(1, n, dtype)[0]
    right = exact(weight)
    for config in compiled(dtype, group, indexed=False):
        tile_m = config.tile.tile_m
        for m in (1, tile_m - 1, tile_m, tile_m + 1, 3 * tile_m + 5):
            for split_k in (True, False):
                a = activations(m, k, dtype)
                out = torch.full((m, n), torch.nan, dtype=dtype, device="cuda")
                extra = bias if m % 2 else None
                billhook.gemm(a, weight, extra, config=config, split_k=split_k, out=out)
                ref = reference.gemm(host(a), right, host(extra))
                check(out, ref, weight, config, f"{config} m={m} n={n} k={k} split_k={split_k}")


@pytest.mark.parametrize(
    ("n", "k", "group"),
    [
        (16, 16, -1),
        (16, 16, 32),
        (80, 144, 32),
        (144, 80, 32),
        (2880, 2880, 64),
        (2880, 2880, 32),
        (5760, 2880, -1),
        (4096, 4096, 128),
        (64, 11008, 128),
        (11008, 64, 64),
        (1040, 2064, 128),
    ],
)
def test_odd_shapes_are_within_the_bound(n: int, k: int, group: int) -> None:
    dtype = torch.bfloat16
    weight = draw_weight(k, n, group, dtype)
    right = exact(weight)
    for m in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 23, 31, 33, 47, 63, 64, 65, 97, 127, 130):
        a = activations(m, k, dtype)
        check(billhook.gemm(a, weight), reference.gemm(host(a), right), weight, None, f"m={m} n={n} k={k}")


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", list(ELEMENTS), ids=str)
def test_the_identity_gives_back_every_weight_to_the_bit(dtype: Any, group: int) -> None:
    """All codes in all places: a wrong nibble, row or scale cannot hide in a sum."""
    k, n = 320, 336
    weight = draw_weight(k, n, group, dtype)
    want = exact(weight).astype(numpy_dtype(ELEMENTS[dtype])).astype(np.float64)
    a = torch.eye(k, device="cuda", dtype=dtype)
    for config in compiled(dtype, group, indexed=False):
        got = host(billhook.gemm(a, weight, config=config))
        wrong = np.argwhere(got != want)
        assert not len(wrong), f"{config}: {len(wrong)} weights differ, first [k, n] = {wrong[0]}"


def test_more_tokens_than_a_wave_of_tiles() -> None:
    weight = draw_weight(1024, 512, 128, torch.bfloat16)
    a = activations(5000, 1024, torch.bfloat16)
    check(billhook.gemm(a, weight), reference.gemm(host(a), exact(weight)), weight, None, "m=5000")


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (300, 17920, 1024),  # tiles of 256 tokens: halves below whole ones, on 132 multiprocessors
        (520, 4096, 4096),  # and of tiles that fill no wave
        (200, 4096, 4096),  # tiles of 96 and more: parts of others come through the stages
        (100, 1024, 8192),  # of several others
    ],
)
def test_tiles_are_halved_and_shared(m: int, n: int, k: int) -> None:
    weight = draw_weight(k, n, 128, torch.bfloat16)
    a = activations(m, k, torch.bfloat16)
    ref = multiply(a, torch.from_numpy(exact(weight)).cuda())
    for config in compiled(torch.bfloat16, 128, indexed=False):
        if config.tile.tile_m < 96:
            continue
        for split_k in (True, False):
            out = billhook.gemm(a, weight, config=config, split_k=split_k)
            check(out, ref, weight, config, f"{config} m={m} n={n} k={k} split_k={split_k}")
            assert torch.equal(out, billhook.gemm(a, weight, config=config, split_k=split_k))


def test_nothing_but_the_output_is_written_and_strides_are_heeded() -> None:
    m, k, n = 13, 272, 208
    weight = draw_weight(k, n, 64, torch.float16)
    wide = activations(m, k + 48, torch.float16)
    a = wide[:, 16 : 16 + k]
    field = torch.full((m + 2, n + 24), torch.nan, dtype=torch.float16, device="cuda")
    out = field[1 : 1 + m, 8 : 8 + n]
    assert billhook.gemm(a, weight, out=out) is out
    check(out, reference.gemm(host(a), exact(weight)), weight, None, "strided")
    field[1 : 1 + m, 8 : 8 + n] = torch.nan
    assert field.isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    weight = draw_weight(4096, 512, 128, torch.bfloat16)
    a = activations(9, 4096, torch.bfloat16)
    clean = billhook.gemm(a, weight)
    a[4, 100] = value
    out = billhook.gemm(a, weight)
    assert not out[4].isfinite().all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(out[others], clean[others])
    assert torch.equal(billhook.gemm(a[:4], weight), billhook.gemm(a[:4], weight))


def test_results_do_not_depend_on_timing() -> None:
    weight = draw_weight(4096, 4096, 128, torch.bfloat16)
    for m in (1, 16, 100):
        a = activations(m, 4096, torch.bfloat16)
        first = billhook.gemm(a, weight)
        for _ in range(30):
            assert torch.equal(billhook.gemm(a, weight), first)


def test_without_split_k_a_row_does_not_depend_on_the_batch() -> None:
    weight = draw_weight(4096, 1024, 128, torch.bfloat16)
    a = activations(200, 4096, torch.bfloat16)
    for config in compiled(torch.bfloat16, 128, indexed=False):
        whole = billhook.gemm(a, weight, config=config, split_k=False)
        for m in (1, 7, 16, 64, 199):
            part = billhook.gemm(a[-m:], weight, config=config, split_k=False)
            assert torch.equal(part, whole[-m:]), f"{config} m={m}"


def test_a_graph_replays_with_new_inputs() -> None:
    weight, bias = draw_weight(2048, 768, 128, torch.bfloat16), activations(1, 768, torch.bfloat16)[0]
    a, out = activations(24, 2048, torch.bfloat16), torch.empty(24, 768, dtype=torch.bfloat16, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the first use of this stream, and of this kernel: nothing was warmed up
        hidden = billhook.gemm(a, weight, bias)
        billhook.gemm(a, weight, out=out)
        for _ in range(20):  # programmatic edges between launches that share a workspace
            billhook.gemm(a, weight, out=out)
    for _ in range(5):
        a.copy_(activations(24, 2048, torch.bfloat16))
        out.fill_(torch.nan)
        graph.replay()
        billhook.gemm(activations(8, 2048, torch.bfloat16), weight)  # eager work beside it
        torch.cuda.synchronize()
        check(hidden, reference.gemm(host(a), exact(weight), host(bias)), weight, None, "graph, with bias")
        check(out, reference.gemm(host(a), exact(weight)), weight, None, "graph")


def test_a_chain_of_launches_sees_what_the_one_before_wrote() -> None:
    """Programmatic dependent launch: each GEMM reads the output of the one still ending."""
    weights = [draw_weight(1024, 1024, 128, torch.bfloat16) for _ in range(4)]
    start = activations(16, 1024, torch.bfloat16)

    def chain(slowly: bool) -> Any:
        a = start
        for step in range(40):
            a = billhook.gemm(a, weights[step % 4])
            a = a / a.abs().amax()
            if slowly:
                torch.cuda.synchronize()
        return a

    want = chain(slowly=True)
    for _ in range(5):
        assert torch.equal(chain(slowly=False), want)


def test_streams_do_not_disturb_each_other() -> None:
    weight = draw_weight(4096, 4096, 128, torch.bfloat16)
    inputs = [activations(16, 4096, torch.bfloat16) for _ in range(4)]
    want = [billhook.gemm(a, weight) for a in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    results: list[list[Any]] = [[] for _ in inputs]
    for _ in range(25):
        for stream, a, kept in zip(streams, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                kept.append(billhook.gemm(a, weight))
    torch.cuda.synchronize()
    for expected, kept in zip(want, results, strict=True):
        assert all(torch.equal(out, expected) for out in kept)


def test_a_new_thread_can_launch() -> None:
    weight, a = draw_weight(512, 512, 128, torch.bfloat16), activations(4, 512, torch.bfloat16)
    want, got = billhook.gemm(a, weight), []
    thread = threading.Thread(target=lambda: got.append(billhook.gemm(a, weight)))
    thread.start()
    thread.join()
    assert torch.equal(got[0], want)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_function_is_one_graph(mode: str) -> None:
    weight = draw_weight(512, 768, 128, torch.bfloat16)

    def layer(a: Any) -> Any:
        return torch.relu(billhook.gemm(a * 2, weight)) + 1

    compiled_layer = torch.compile(layer, fullgraph=True, mode=mode)
    for m in (3, 3, 3, 17, 17):
        a = activations(m, 512, torch.bfloat16)
        # The compiler may round elsewhere than the eager operations around the GEMM do.
        torch.testing.assert_close(compiled_layer(a).clone(), layer(a), rtol=2e-2, atol=2e-2)


def test_no_tokens_give_no_rows() -> None:
    weight = draw_weight(64, 48, 32, torch.bfloat16)
    assert billhook.gemm(activations(0, 64, torch.bfloat16), weight).shape == (0, 48)


def test_the_gpu_packs_as_the_host_does() -> None:
    weight = draw_weight(336, 208, 32, torch.bfloat16)
    quantized_on_host = billhook.ops.pack_quantized(billhook.ops.unpack_weight(weight))
    assert (to_numpy(weight.codes) == to_numpy(quantized_on_host.codes)).all()
    assert torch.equal(weight.scales.cpu(), quantized_on_host.scales)


def test_bad_input_is_refused_before_anything_is_launched() -> None:
    weight, a = draw_weight(64, 48, 32, torch.bfloat16), activations(4, 64, torch.bfloat16)
    moe_kernel = compiled(torch.bfloat16, 32, indexed=True)[0]
    other_group = compiled(torch.bfloat16, 64, indexed=False)[0]
    for call, error, words in (
        (lambda: billhook.gemm(a.cpu(), weight), WeightError, "activations are on cpu, the weight on cuda:0"),
        (lambda: billhook.gemm(a.half(), weight), WeightError, "torch.bfloat16"),
        (lambda: billhook.gemm(a[:, :48], weight), WeightError, r"must be \[m, 64\]"),
        (lambda: billhook.gemm(a, weight, torch.zeros(48, dtype=a.dtype)), WeightError, "bias .* on cuda:0"),
        (lambda: billhook.gemm(a, weight, config=moe_kernel), InputError, "is for MoE layers"),
        (lambda: billhook.gemm(a, weight, config=other_group), InputError, "the problem's 32"),
        (lambda: billhook.gemm(a, weight, config="marlin"), InputError, "not a kernel name"),
    ):
        with pytest.raises(error, match=words):
            call()
    torch.cuda.synchronize()
