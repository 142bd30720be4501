"""Routing and MoE GEMMs on the GPU."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from gpu.problems import ELEMENTS, GROUPS, check, compiled, draw_weight, exact, host  # noqa: E402

import billhook  # noqa: E402
from billhook.dispatch import routing as on_host  # noqa: E402
from billhook.errors import InputError  # noqa: E402
from billhook.formats import reference  # noqa: E402


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def draw_ids(tokens: int, experts: int, top_k: int) -> Any:
    """Distinct experts for each token, as routers choose."""
    return torch.rand(tokens, experts, device="cuda").topk(top_k, dim=1).indices


def check_routing(ids: Any, experts: int, block_m: int) -> None:
    got = billhook.route(ids, experts, block_m)
    token_ids, expert_ids, length = on_host.route(ids.cpu().numpy(), experts, block_m)
    what = f"{tuple(ids.shape)} ids, {experts} experts, block_m={block_m}"
    assert got.num_tokens_padded.item() == length, what
    assert np.array_equal(got.expert_ids.cpu().numpy()[: len(expert_ids)], expert_ids), what
    assert np.array_equal(got.sorted_token_ids.cpu().numpy()[:length], token_ids), what


@pytest.mark.parametrize("experts", [1, 2, 8, 60, 128, 256, 1024])
@pytest.mark.parametrize("block_m", [8, 16, 48, 64])
def test_rows_are_sorted_as_on_the_host(experts: int, block_m: int) -> None:
    for tokens, top_k in ((1, 1), (1, 2), (3, 5), (7, 8), (64, 8), (511, 8), (1025, 4), (4096, 8), (9001, 7)):
        ids = torch.randint(-1, experts + 1, (tokens, top_k), device="cuda")  # some outside the experts
        check_routing(ids, experts, block_m)


def test_crowded_empty_and_no_experts() -> None:
    for fill in (0, 63, 127, -1, 128):
        check_routing(torch.full((700, 3), fill, device="cuda", dtype=torch.int32), 128, 16)
    check_routing(torch.zeros((0, 4), device="cuda", dtype=torch.int32), 8, 16)


def test_ids_may_lie_anywhere() -> None:
    ids = torch.randint(0, 8, (1001,), device="cuda", dtype=torch.int32)
    check_routing(ids[1:].view(500, 2), 8, 16)  # not aligned to 16 bytes
    check_routing(ids[:1000].view(2, 500).t(), 8, 16)  # not contiguous


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", list(ELEMENTS), ids=str)
def test_every_tile_is_within_its_bound(dtype: Any, group: int) -> None:
    experts, top_k, k, n = 5, 2, 336, 208
    weight = draw_weight(k, n, group, dtype, experts)
    bias = torch.randn(experts, n, device="cuda").to(dtype)
    right = exact(weight)
    for config in compiled(dtype, group, indexed=True):
        for tokens in (1, config.tile.tile_m + 1, 150):
            a, ids = torch.randn(tokens, k, device="cuda").to(dtype), draw_ids(tokens, experts, top_k)
            factors = torch.rand(tokens, top_k, device="cuda") if tokens > 1 else None
            extra = bias if tokens != 150 else None
            routing = billhook.route(ids, experts, config.tile.tile_m, complete=True)
            for split_k in (True, False):
                out = torch.full((tokens * top_k, n), torch.nan, dtype=dtype, device="cuda")
                billhook.moe_gemm(a, weight, routing, factors, extra, config=config, split_k=split_k, out=out)
                ref = reference.moe_gemm(host(a), right, ids.cpu(), host(factors), host(extra))
                check(out, ref, weight, config, f"{config} tokens={tokens} split_k={split_k}")


ROUTINGS = {
    "random": lambda ids, experts: ids,
    "half of the experts empty": lambda ids, experts: ids % (experts // 2),
    "all on one": lambda ids, experts: torch.full_like(ids, experts - 1),
    "some without expert": lambda ids, experts: torch.where(ids % 3 == 0, -1, ids),
    "none has an expert": lambda ids, experts: torch.full_like(ids, -1),
}


@pytest.mark.parametrize("routing", list(ROUTINGS))
@pytest.mark.parametrize(
    ("experts", "top_k", "n", "k"), [(8, 2, 512, 1024), (128, 8, 96, 192), (256, 8, 64, 128)]
)
def test_every_kind_of_routing_is_within_the_bound(
    routing: str, experts: int, top_k: int, n: int, k: int
) -> None:
    dtype = torch.bfloat16
    weight = draw_weight(k, n, 64, dtype, experts)
    right = exact(weight)
    for tokens in (1, 2, 17, 64, 300):
        a = torch.randn(tokens, k, device="cuda").to(dtype)
        ids = ROUTINGS[routing](draw_ids(tokens, experts, top_k), experts)
        out = billhook.moe_gemm(a, weight, ids)
        ref = reference.moe_gemm(host(a), right, ids.cpu())
        check(out, ref, weight, None, f"{routing}, tokens={tokens} experts={experts}")
        assert not out[ids.reshape(-1) < 0].any()


@pytest.mark.parametrize("counts", [(3, 0, 40, 7), (0, 0, 0, 100), (1, 1, 1, 1), (700, 0, 0, 5)], ids=str)
def test_rows_that_lie_together_meet_their_expert(counts: tuple[int, ...]) -> None:
    experts, n, k, dtype = len(counts), 144, 336, torch.bfloat16
    weight = draw_weight(k, n, 64, dtype, experts)
    a = torch.randn(sum(counts) + 9, k, device="cuda").to(dtype)  # nine rows of no expert
    offsets = torch.tensor([0, *np.cumsum(counts)], device="cuda")
    out = billhook.grouped_gemm(a, weight, offsets)
    ids = np.repeat([*range(experts), -1], [*counts, 9]).reshape(-1, 1)
    check(out, reference.moe_gemm(host(a), exact(weight), ids), weight, None, f"{counts}")
    assert not out[sum(counts) :].any()


def test_both_gemms_of_a_layer_share_a_routing() -> None:
    experts, top_k, tokens, dtype = 8, 2, 37, torch.bfloat16
    w13, w2 = draw_weight(256, 640, 128, dtype, experts), draw_weight(320, 256, 32, dtype, experts)
    a, ids = torch.randn(tokens, 256, device="cuda").to(dtype), draw_ids(tokens, experts, top_k)
    factors = torch.rand(tokens, top_k, device="cuda")
    routing = billhook.route(ids, experts, billhook.moe_block_m(w13, tokens, top_k))
    gate, up = billhook.moe_gemm(a, w13, routing).chunk(2, dim=1)
    hidden = (torch.nn.functional.silu(gate) * up).contiguous()
    out = billhook.moe_gemm(hidden, w2, routing, factors)
    ref = reference.moe_gemm(host(hidden), exact(w2), ids.cpu().reshape(-1, 1), host(factors).reshape(-1, 1))
    check(out, ref, w2, None, "w2")


@pytest.mark.parametrize("grouped", [False, True])
def test_a_layer_is_captured_into_a_graph(grouped: bool) -> None:
    experts, top_k, tokens, dtype = 16, 4, 24, torch.bfloat16
    weight = draw_weight(512, 256, 128, dtype, experts)
    configs = [one for one in compiled(dtype, 128, indexed=True) if one.grouped]
    if grouped and not configs:
        pytest.skip("no kernel of this GPU takes grouped rows")
    config = configs[0] if grouped else None
    a, ids = torch.randn(tokens, 512, device="cuda").to(dtype), draw_ids(tokens, experts, top_k)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = billhook.moe_gemm(a, weight, ids, config=config)
    for _ in range(5):
        a.copy_(torch.randn(tokens, 512, device="cuda"))
        ids.copy_(draw_ids(tokens, experts, top_k))
        graph.replay()
        torch.cuda.synchronize()
        check(out, reference.moe_gemm(host(a), exact(weight), ids.cpu()), weight, None, "graph")


def test_rows_of_any_stride_are_grouped() -> None:
    experts, top_k, tokens, k, dtype = 4, 2, 300, 336, torch.float16
    weight = draw_weight(k, 192, 64, dtype, experts)
    a, ids = torch.randn(tokens, k + 24, device="cuda").to(dtype)[:, :k], draw_ids(tokens, experts, top_k)
    ids = torch.where(ids == 1, -1, ids)
    ref = reference.moe_gemm(host(a), exact(weight), ids.cpu())
    for config in (one for one in compiled(dtype, 64, indexed=True) if one.grouped):
        out = billhook.moe_gemm(a, weight, ids, config=config)
        check(out, ref, weight, config, str(config))
        assert not out[ids.reshape(-1) < 0].any()


def test_a_compiled_function_is_one_graph() -> None:
    experts, dtype = 8, torch.bfloat16
    weight = draw_weight(256, 128, 128, dtype, experts)

    def layer(a: Any, ids: Any) -> Any:
        routing = billhook.route(ids, experts, 16)
        return billhook.moe_gemm(a, weight, routing), billhook.moe_gemm(a, weight, ids)

    compiled_layer = torch.compile(layer, fullgraph=True)
    for tokens in (5, 33):
        a, ids = torch.randn(tokens, 256, device="cuda").to(dtype), draw_ids(tokens, experts, 2)
        for got, want in zip(compiled_layer(a, ids), layer(a, ids), strict=True):
            assert torch.equal(got, want)


def test_a_kernel_for_other_blocks_than_the_routing_s_is_refused() -> None:
    weight = draw_weight(64, 48, 32, torch.bfloat16, 4)
    a, ids = torch.randn(4, 64, device="cuda").bfloat16(), draw_ids(4, 4, 2)
    configs = {config.tile.tile_m: config for config in compiled(torch.bfloat16, 32, indexed=True)}
    with pytest.raises(InputError, match=r"rows \(routed in 8\)"):
        billhook.moe_gemm(a, weight, billhook.route(ids, 4, 8), config=configs[16])
    with pytest.raises(InputError, match="int32 on cuda:0"):
        billhook.moe_gemm(a, weight, billhook.route(ids.cpu(), 4, 8))
