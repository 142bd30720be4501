"""Modules with packed weights on the GPU: as their dequantized weights, eager, compiled and captured."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from billhook.formats.host import dequantize  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE, silu_and_mul, top_k_softmax  # noqa: E402
from billhook.ops import PackedWeight, quantize_activations, quantize_weight, unpack_weight  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

BF16 = torch.bfloat16
WIDE = [name for name, held in FORMATS.items() if held.activations]  # multiplied by 16-bit activations
EXPERTS, TOP_K, HIDDEN, INNER = 8, 2, 256, 192


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pack(*shape: int, format_: str = "u4b8", dtype: Any = BF16) -> PackedWeight:
    return quantize_weight(torch.randn(*shape, device="cuda").to(dtype), dtype=dtype, format=format_)


def dense(weight: PackedWeight) -> Any:
    return torch.from_numpy(dequantize(unpack_weight(weight))).double().cuda()


def close(got: Any, want: Any) -> None:
    """Compare what was rounded a few times with what was not."""
    assert not got.isnan().any()
    assert (got.double() - want).norm() <= 0.01 * want.norm()


def draw_experts(format_: str, **options: Any) -> QuantMoE:
    return QuantMoE(
        pack(EXPERTS, HIDDEN, 2 * INNER, format_=format_),
        pack(EXPERTS, INNER, HIDDEN, format_=format_),
        torch.randn(EXPERTS, 2 * INNER, device="cuda").to(BF16),
        torch.randn(EXPERTS, HIDDEN, device="cuda").to(BF16),
        **options,
    )


def draw_tokens(tokens: int) -> tuple[Any, Any, Any]:
    logits = torch.randn(tokens, EXPERTS, device="cuda")
    return torch.randn(tokens, HIDDEN, device="cuda").to(BF16), *top_k_softmax(logits, TOP_K)


def answer(layer: QuantMoE, x: Any, ids: Any, factors: Any) -> Any:
    """Send tokens through every expert, in float64, and take what they visit."""
    gate_up = torch.einsum("tk,ekn->etn", x.double(), dense(layer.w13.weight))
    gate_up += layer.w13_bias.double()[:, None]
    down = torch.einsum("etk,ekn->etn", silu_and_mul(gate_up), dense(layer.w2.weight))
    down += layer.w2_bias.double()[:, None]
    share = torch.zeros(len(x), EXPERTS, device="cuda").double().scatter_add(1, ids, factors.double())
    return torch.einsum("te,etn->tn", share, down)


@pytest.mark.parametrize("format_", WIDE)
def test_a_linear_layer_multiplies_by_its_dequantized_weight(format_: str) -> None:
    bias = torch.randn(208, device="cuda").to(BF16)
    layer = QuantLinear(pack(384, 208, format_=format_), bias)
    right = dense(layer.weight)
    for shape in ((), (1,), (3, 7), (2, 100), (0, 4)):
        x = torch.randn(*shape, 384, device="cuda").to(BF16)
        close(layer(x), x.double() @ right + bias.double())


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="scales are folded on GPUs of 9.0",
)
@pytest.mark.parametrize("dtype", [torch.float16, BF16])
def test_layers_of_folded_weights_multiply_quantized_inputs(dtype: Any) -> None:
    layer = QuantLinear(pack(384, 208, format_="w4a8"), torch.randn(208, device="cuda").to(dtype))
    x = torch.randn(3, 70, 384, device="cuda").to(dtype)
    codes, scales = quantize_activations(x.reshape(210, 384))
    want = (codes.double() * scales.double()) @ dense(layer.weight) + layer.bias.double()
    got = layer(x)
    assert got.dtype == dtype
    close(got.view(210, 208), want)
    w13, w2 = (pack(EXPERTS, *size, format_="w4a8") for size in ((HIDDEN, 2 * INNER), (INNER, HIDDEN)))
    for tokens in (1, 64, 300):
        x, ids, factors = draw_tokens(tokens)
        there, here = (
            QuantMoE(one, two)(x.to(where, dtype), ids.to(where), factors.to(where))
            for where, one, two in (("cuda", w13, w2), ("cpu", w13.to("cpu"), w2.to("cpu")))
        )
        assert there.dtype == dtype
        assert (there.cpu().double() - here.double()).norm() <= 0.02 * here.double().norm()


def test_inputs_are_taken_in_the_weight_s_order() -> None:
    weight, order = pack(384, 208), torch.randperm(384)
    layer, x = QuantLinear(weight, input_order=order), torch.randn(5, 384, device="cuda").to(BF16)
    assert torch.equal(layer(x), QuantLinear(weight)(x[:, order.cuda()]))


@pytest.mark.parametrize("format_", WIDE)
@pytest.mark.parametrize("complete", [False, True])
def test_experts_answer_as_their_dequantized_weights_do(format_: str, complete: bool) -> None:
    layer = draw_experts(format_, complete=complete)
    for tokens in (1, 5, 64, 300):
        x, ids, factors = draw_tokens(tokens)
        close(layer(x, ids, factors), answer(layer, x, ids, factors))


def test_ids_outside_the_experts_add_nothing() -> None:
    layer, (x, ids, factors) = draw_experts("u4b8"), draw_tokens(9)
    kept = layer(x, ids, factors * torch.tensor([1.0, 0.0], device="cuda"))
    ids[:, 1] = -1
    close(layer(x, ids, factors), kept.double())


def test_a_block_is_captured_and_replayed() -> None:
    linear, experts = QuantLinear(pack(HIDDEN, HIDDEN)), draw_experts("u4b8", complete=True)
    x, ids, factors = draw_tokens(4)

    def block() -> Any:
        return experts(linear(x), ids, factors)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        block()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = block()
    for _ in range(3):
        for held, fresh in zip((x, ids, factors), draw_tokens(4), strict=True):
            held.copy_(fresh)
        graph.replay()
        close(out, block().double())


def test_a_block_is_compiled_whole() -> None:
    linear, experts = QuantLinear(pack(HIDDEN, HIDDEN)), draw_experts("u4b8")

    def block(x: Any, ids: Any, factors: Any) -> Any:
        return experts(linear(x * 2), ids, factors) + x

    compiled = torch.compile(block, fullgraph=True)
    for tokens in (3, 3, 17):
        drawn = draw_tokens(tokens)
        close(compiled(*drawn), block(*drawn).double())


def test_layers_move_between_devices() -> None:
    layer, x = QuantLinear(pack(HIDDEN, 64)), torch.randn(3, HIDDEN, device="cuda").to(BF16)
    away = copy.deepcopy(layer).cpu()
    close(away(x.cpu()), layer(x).double().cpu())
    assert torch.equal(away.cuda()(x), layer(x))


@pytest.mark.parametrize(
    ("format_", "dtype"), [("fp8", torch.float8_e4m3fn), ("u8b128", torch.int8), ("u4b8", torch.int8)]
)
@pytest.mark.parametrize("static", [False, True])
def test_layers_quantize_their_inputs(format_: str, dtype: Any, static: bool) -> None:
    """As on the host, where the same codes are multiplied."""
    scale = 4 / torch.finfo(dtype).max if dtype.is_floating_point else 4 / 127
    layer = QuantLinear(
        pack(384, 208, format_=format_), activations=dtype, input_scale=scale if static else None
    )
    on_host = copy.deepcopy(layer).cpu()
    for tokens in (1, 7, 200):
        x = torch.randn(tokens, 384, device="cuda").to(BF16)
        close(layer(x), on_host(x.cpu()).double().cuda())
    experts = draw_experts(format_, activations=dtype, input_scales=(scale, 16 * scale) if static else None)
    experts_on_host = copy.deepcopy(experts).cpu()
    for tokens in (1, 40):
        given = draw_tokens(tokens)
        close(experts(*given), experts_on_host(*(one.cpu() for one in given)).double().cuda())
