"""Modules with packed weights on the CPU: results, moving, storing, tracing, and every refusal."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import billhook  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.formats.host import dequantize  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE, clamped_swiglu, silu_and_mul, top_k_softmax  # noqa: E402
from billhook.ops import PackedWeight, unpack_weight  # noqa: E402

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def pack(*shape: int, group: int = 32, dtype: Any = BF16) -> PackedWeight:
    return billhook.quantize_weight(torch.randn(*shape).to(dtype), group)


def dense(weight: PackedWeight) -> Any:
    return torch.from_numpy(dequantize(unpack_weight(weight), np.float32))


def close(got: Any, want: Any) -> None:
    """Compare what was rounded to bf16 a few times with what was not."""
    assert (got.float() - want).norm() <= 0.01 * want.norm()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 1)])
def test_a_linear_layer_takes_any_leading_shape(shape: tuple[int, ...]) -> None:
    bias = torch.randn(48).to(BF16)
    layer = QuantLinear(pack(64, 48), bias)
    x = torch.randn(*shape, 64).to(BF16)
    out = layer(x)
    assert out.shape == (*shape, 48)
    assert out.dtype == BF16
    close(out, x.float() @ dense(layer.weight) + bias.float())


def test_a_linear_layer_takes_rows_that_are_not_dense() -> None:
    layer, x = QuantLinear(pack(64, 48)), torch.randn(4, 3, 128).to(BF16)
    for one in (x[..., :64], x[..., 1:65], x[..., ::2], x[:, -1, 64:]):
        assert torch.equal(layer(one), layer(one.clone()))


def test_inputs_are_taken_in_the_weight_s_order() -> None:
    weight, order, x = pack(64, 48), torch.randperm(64), torch.randn(5, 64).to(BF16)
    shuffled = QuantLinear(weight, input_order=order)
    assert torch.equal(shuffled(x), QuantLinear(weight)(x[:, order]))
    other = QuantLinear(weight, input_order=torch.arange(64))
    other.load_state_dict(shuffled.state_dict())
    assert torch.equal(other(x), shuffled(x))


@pytest.mark.parametrize(("format_", "dtype"), [("u4b8", torch.float16), ("u4b8", BF16), ("mxfp4", BF16)])
def test_a_layer_is_quantized_as_its_weight_is(format_: str, dtype: Any) -> None:
    linear = torch.nn.Linear(64, 48).to(dtype)
    layer = QuantLinear.from_linear(linear, format_)
    want = billhook.quantize_weight(linear.weight.t(), format=format_)
    assert torch.equal(layer.codes, want.codes)
    assert torch.equal(layer.scales, want.scales)
    assert torch.equal(layer.bias, linear.bias)
    assert (layer.in_features, layer.out_features) == (64, 48)
    assert f"{format_} [k=64, n=48]" in repr(layer)


def test_a_layer_of_another_type_is_quantized_for_the_activations_asked_for() -> None:
    layer = QuantLinear.from_linear(torch.nn.Linear(64, 48), dtype=BF16)
    assert layer(torch.randn(3, 64).to(BF16)).dtype == BF16


def test_a_state_dict_restores_the_weight_and_its_group_size() -> None:
    # Both store one scale for each row: only `meta` tells them apart.
    saved, other = QuantLinear(pack(32, 48, group=-1)), QuantLinear(pack(32, 48, group=64))
    assert other.load_state_dict(saved.state_dict())
    assert other.weight.group_size == -1
    x = torch.randn(3, 32).to(BF16)
    assert torch.equal(other(x), saved(x))
    assert PackedWeight.from_state_dict(saved.state_dict()).n == 48


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_may_be_assigned_or_copied(assign: bool) -> None:
    saved, other = QuantLinear(pack(64, 48)), QuantLinear(pack(64, 48))
    other.load_state_dict(saved.state_dict(), assign=assign)
    assert (other.weight.codes.data_ptr() == saved.codes.data_ptr()) == assign
    x = torch.randn(3, 64).to(BF16)
    assert torch.equal(other(x), saved(x))


def test_a_state_dict_that_does_not_fit_is_refused() -> None:
    layer = QuantLinear(pack(64, 48))
    for other, words in (
        (QuantLinear(pack(128, 48)), "size mismatch for codes"),
        (QuantLinear(pack(64, 48, dtype=torch.float16)), "scales is torch.float16; this module holds"),
        (QuantLinear(pack(64, 48), torch.zeros(48).to(BF16)), "bias"),
    ):
        with pytest.raises(RuntimeError, match=words):
            layer.load_state_dict(other.state_dict())
    broken = layer.state_dict() | {"meta": torch.tensor([99, 48, 64, 32, 0])}
    with pytest.raises(RuntimeError, match="format number 99"):
        QuantLinear(pack(64, 48)).load_state_dict(broken)


def test_moving_never_changes_types() -> None:
    layer = QuantLinear(pack(64, 48), torch.zeros(48).to(BF16))
    x = torch.randn(3, 64).to(BF16)
    want = layer(x)
    for moved in (layer.half(), layer.float(), layer.to(torch.float64), layer.to("cpu")):
        assert moved is layer
        assert moved.weight.codes is moved.codes
        assert torch.equal(moved(x), want)
    away = copy.deepcopy(layer).to("meta")
    assert away.weight.device.type == "meta"
    assert away.weight.n == 48
    assert layer.weight.device.type == "cpu"


def test_a_copy_has_memory_of_its_own() -> None:
    layer = QuantLinear(pack(64, 48))
    copied = copy.deepcopy(layer)
    copied.codes.zero_()
    assert not copied.weight.codes.any()
    assert layer.weight.codes.any()


def test_a_linear_layer_refuses_what_does_not_fit() -> None:
    weight = pack(64, 48)
    for make, words in (
        (lambda: QuantLinear(torch.zeros(2)), "got Tensor"),
        (lambda: QuantLinear(pack(2, 64, 48)), "holds 2 experts; use QuantMoE"),
        (lambda: QuantLinear(weight, torch.zeros(47).to(BF16)), r"bias must be torch.bfloat16 \[48\]"),
        (lambda: QuantLinear(weight, torch.zeros(48)), "got torch.float32"),
        (lambda: QuantLinear(weight, input_order=torch.zeros(64).long()), "each of 0 to 63 once"),
        (lambda: QuantLinear(weight, input_order=torch.arange(63)), r"int64 \[64\]"),
        (lambda: QuantLinear(weight)(torch.zeros(3, 63).to(BF16)), "63 features, the layer takes 64"),
        (lambda: QuantLinear(weight)(torch.zeros(3, 64)), "got torch.float32"),
    ):
        with pytest.raises(WeightError, match=words):
            make()


EXPERTS, TOP_K, HIDDEN, INNER = 5, 2, 64, 96


def route(tokens: int) -> tuple[Any, Any]:
    return top_k_softmax(torch.randn(tokens, EXPERTS).to(BF16), TOP_K)


def answer(layer: QuantMoE, x: Any, ids: Any, weights: Any) -> Any:
    """Send tokens through experts one by one, in float32."""
    w13, w2 = dense(layer.w13.weight), dense(layer.w2.weight)
    out = torch.zeros(len(x), HIDDEN)
    for token, slot in np.ndindex(*ids.shape):
        expert = int(ids[token, slot])
        if 0 <= expert < EXPERTS:
            gate_up = x[token].float() @ w13[expert]
            gate_up += 0 if layer.w13_bias is None else layer.w13_bias[expert].float()
            down = layer.activation(gate_up) @ w2[expert]
            down += 0 if layer.w2_bias is None else layer.w2_bias[expert].float()
            out[token] += weights[token, slot].float() * down
    return out


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", [silu_and_mul, clamped_swiglu])
@pytest.mark.parametrize("tokens", [0, 1, 23])
def test_experts_answer_as_each_would(tokens: int, activation: Any, biased: bool, complete: bool) -> None:
    biases = [torch.randn(EXPERTS, n).to(BF16) if biased else None for n in (2 * INNER, HIDDEN)]
    weights = pack(EXPERTS, HIDDEN, 2 * INNER), pack(EXPERTS, INNER, HIDDEN)
    layer = QuantMoE(*weights, *biases, activation=activation, complete=complete)
    x, (ids, factors) = torch.randn(tokens, HIDDEN).to(BF16), route(tokens)
    out = layer(x, ids, factors)
    assert (out.shape, out.dtype) == (x.shape, BF16)
    close(out, answer(layer, x, ids, factors))
    assert torch.equal(layer(x.view(1, tokens, HIDDEN), ids.int(), factors)[0], out)


def test_ids_outside_the_experts_add_nothing() -> None:
    layer = QuantMoE(pack(EXPERTS, HIDDEN, 2 * INNER), pack(EXPERTS, INNER, HIDDEN))
    x, (ids, factors) = torch.randn(6, HIDDEN).to(BF16), route(6)
    ids[:3, 0], ids[3] = -1, EXPERTS
    out = layer(x, ids, factors)
    close(out, answer(layer, x, ids, factors))
    assert not out[3].any()


def test_routers_weigh_as_models_do() -> None:
    logits = torch.randn(7, EXPERTS)
    ids, weights = top_k_softmax(logits, TOP_K)
    assert ids.dtype == torch.int64
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    torch.testing.assert_close(weights, logits.gather(1, ids).softmax(-1))
    _, plain = top_k_softmax(logits, TOP_K, renormalize=False)
    torch.testing.assert_close(plain, logits.softmax(-1).gather(1, ids))


def test_the_clamped_activation_is_that_of_gpt_oss() -> None:
    gate, up = torch.tensor([-9.0, -1.0, 0.5, 8.0]), torch.tensor([9.0, -8.0, 1.0, 2.0])
    got = clamped_swiglu(torch.cat([gate, up]))
    low = gate.clamp(max=7)
    torch.testing.assert_close(got, (up.clamp(-7, 7) + 1) * low / (1 + torch.exp(-1.702 * low)))


def test_experts_are_stored_and_restored() -> None:
    saved = QuantMoE(pack(EXPERTS, HIDDEN, 2 * INNER), pack(EXPERTS, INNER, HIDDEN))
    other = QuantMoE(pack(EXPERTS, HIDDEN, 2 * INNER), pack(EXPERTS, INNER, HIDDEN))
    other.load_state_dict(saved.state_dict())
    assert set(saved.state_dict()) == {f"{w}.{t}" for w in ("w13", "w2") for t in ("codes", "scales", "meta")}
    x, routed = torch.randn(6, HIDDEN).to(BF16), route(6)
    assert torch.equal(saved.half()(x, *routed), other(x, *routed))


def test_experts_refuse_what_does_not_fit() -> None:
    w13, w2 = pack(EXPERTS, HIDDEN, 2 * INNER), pack(EXPERTS, INNER, HIDDEN)
    layer, x, (ids, factors) = QuantMoE(w13, w2), torch.zeros(6, HIDDEN).to(BF16), route(6)
    for make, words in (
        (lambda: QuantMoE(pack(HIDDEN, 2 * INNER), w2), "got 0 and 5; 0 is dense"),
        (lambda: QuantMoE(w13, pack(4, INNER, HIDDEN)), "got 5 and 4"),
        (lambda: QuantMoE(w2, w13), r"w2 \[inner, k\]"),
        (lambda: QuantMoE(w13, pack(EXPERTS, INNER, HIDDEN, dtype=torch.float16)), "same activations"),
        (lambda: QuantMoE(w13, w2, torch.zeros(EXPERTS, INNER).to(BF16)), r"w13_bias must be .* \[5, 192\]"),
        (lambda: layer(x[:, 1:], ids, factors), "63 features, the experts take 64"),
        (lambda: layer(x.half(), ids, factors), "got torch.float16"),
    ):
        with pytest.raises(WeightError, match=words):
            make()
    for routed in ((ids[:5], factors[:5]), (ids, factors[:, :1]), (ids.reshape(-1), factors.reshape(-1))):
        with pytest.raises(WeightError, match=r"\[6, top_k\]"):
            layer(x, *routed)


def test_both_are_traced_whole() -> None:
    linear, experts = QuantLinear(pack(64, 64)), QuantMoE(pack(5, 64, 192), pack(5, 96, 64))

    def block(x: Any, ids: Any, factors: Any) -> Any:
        return experts(linear(x * 2), ids, factors) + x

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for tokens in (3, 8):
        x, routed = torch.randn(tokens, 64).to(BF16), route(tokens)
        close(compiled(x, *routed), block(x, *routed).float())


def test_importing_billhook_imports_no_torch() -> None:
    script = "import sys, billhook; print('torch' in sys.modules); billhook.nn.QuantLinear"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
