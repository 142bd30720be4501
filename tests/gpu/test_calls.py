"""Calls that leave torch's dispatcher out on the GPU: the operators' bits, in graphs, streams and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

from gpu.problems import draw_weight  # noqa: E402

import billhook  # noqa: E402
from billhook.errors import WeightError  # noqa: E402

K, N, EXPERTS, TOP_K = 512, 320, 5, 2
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw(m: int) -> torch.Tensor:
    return torch.randn(m, K, device="cuda", dtype=HALF)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("m", [1, 17, 300])
def test_a_call_gives_the_bits_of_the_operator(off: type, m: int) -> None:
    weight, bias = draw_weight(K, N, 128, HALF), torch.randn(N, device="cuda", dtype=HALF)
    experts = draw_weight(K, N, 128, HALF, EXPERTS)
    a, ids = draw(m), torch.randint(0, EXPERTS, (m, TOP_K), device="cuda")
    wide = torch.full((m, N + 64), torch.nan, device="cuda", dtype=HALF)

    def results() -> list[torch.Tensor]:
        into = billhook.gemm(a, weight, bias, out=wide[:, :N])
        return [
            billhook.gemm(a, weight),
            billhook.gemm(a, weight, bias),
            into.clone(),
            billhook.gemm(a, weight, split_k=False),
            billhook.moe_gemm(a, experts, ids),
        ]

    want = results()
    with off():
        for _ in range(2):  # prepared, and found again
            for got, right in zip(results(), want, strict=True):
                assert torch.equal(got, right)
    assert wide[:, N:].isnan().all()


@torch.no_grad()
def test_graphs_on_a_stream_of_their_own_follow_their_inputs() -> None:
    weight, a = draw_weight(K, N, 128, HALF), draw(70)
    eager = billhook.gemm(a, weight)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        out = billhook.gemm(a.clone(), weight)
    graph.replay()
    assert torch.equal(out, eager)
    a.copy_(draw(70))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, billhook.gemm(a, weight))


def test_threads_with_streams_of_their_own_do_not_disturb_each_other() -> None:
    weight, inputs = draw_weight(K, N, 128, HALF), [draw(40) for _ in range(4)]
    want = [billhook.gemm(a, weight) for a in inputs]
    torch.cuda.synchronize()

    def work(which: int) -> bool:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            results = [billhook.gemm(inputs[which], weight) for _ in range(200)]
            torch.cuda.current_stream().synchronize()
            return all(torch.equal(one, want[which]) for one in results)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@torch.no_grad()
def test_wrong_input_after_right_is_refused_on_the_gpu_too() -> None:
    weight, a = draw_weight(K, N, 128, HALF), draw(9)
    billhook.gemm(a, weight)
    for wrong in (
        a.half(),
        a.cpu(),
        draw(18)[::2].t().contiguous().t(),
        torch.cat([a.flatten(), a[0]])[1 : 9 * K + 1].view(9, K),
    ):
        with pytest.raises(WeightError):
            billhook.gemm(wrong, weight)
    with pytest.raises(WeightError, match="on cuda"):
        billhook.gemm(a, weight.to("cpu"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@torch.no_grad()
def test_a_call_runs_where_its_tensors_are() -> None:
    weight, a = draw_weight(K, N, 128, HALF), draw(70)
    want = billhook.gemm(a, weight)
    for current in (0, 1):
        with torch.cuda.device(current):
            for index in (0, 1, 0):
                device = f"cuda:{index}"
                got = billhook.gemm(a.to(device), weight.to(device))
                assert got.device == torch.device(device)
                assert torch.equal(got.cpu(), want.cpu())
