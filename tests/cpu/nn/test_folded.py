"""Layers whose scales are folded into e4m3 weights: by hand, from checkpoints and from packed folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

from cpu.nn import models, written  # noqa: E402

import billhook  # noqa: E402
from billhook.checkpoint import pack_checkpoint  # noqa: E402
from billhook.errors import InputError, UnsupportedError, WeightError  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE, place, silu_and_mul  # noqa: E402
from billhook.nn.source import take_outputs  # noqa: E402
from billhook.ops import quantize_activations, quantize_weight, stack_weights, unpack_weight  # noqa: E402
from billhook.ops.tensors import ELEMENTS  # noqa: E402

E4M3 = torch.float8_e4m3fn
each_output = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
INPUTS = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token", "symmetric": True}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@each_output
def test_a_linear_layer_quantizes_its_inputs_and_gives_their_type(dtype: Any) -> None:
    linear = torch.nn.Linear(160, 48).to(dtype)
    layer = QuantLinear.from_linear(linear, "w4a8")
    assert (layer.activations, layer.weight.format) == (E4M3, "w4a8")
    x = torch.randn(2, 3, 160).to(dtype)
    codes, scales = quantize_activations(x.reshape(6, 160))
    want = billhook.gemm(codes, layer.weight, linear.bias, token_scales=scales, output_dtype=dtype)
    got = layer(x)
    assert got.dtype == dtype and torch.equal(got, want.view(2, 3, 48))
    assert (got - linear(x)).norm() < 0.2 * linear(x).norm()
    again = QuantLinear.from_linear(torch.nn.Linear(160, 48).to(dtype), "w4a8")
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), got)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), got)
    with pytest.raises(WeightError, match=r"float16 or torch\.bfloat16 \(got torch\.float32"):
        layer(x.float())


@each_output
def test_experts_quantize_their_inputs_and_give_their_type(dtype: Any) -> None:
    w13, w2 = (
        stack_weights([quantize_weight(torch.randn(k, n), format="w4a8") for _ in range(4)])
        for k, n in ((64, 96), (48, 64))
    )
    x, ids, factors = torch.randn(5, 64).to(dtype), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
    a, scales = quantize_activations(x)
    inner = silu_and_mul(billhook.moe_gemm(a, w13, ids, token_scales=scales, output_dtype=dtype))
    b, scales = quantize_activations(inner)
    rows = billhook.moe_gemm(
        b, w2, ids.reshape(-1, 1), factors.reshape(-1), token_scales=scales, output_dtype=dtype
    )
    got = QuantMoE(w13, w2)(x, ids, factors)
    assert got.dtype == dtype and torch.equal(got, rows.view(5, 2, 64).sum(1))
    wide = stack_weights([quantize_weight(torch.randn(48, 64).bfloat16()) for _ in range(4)])
    with pytest.raises(WeightError, match="the same activations"):
        QuantMoE(w13, wide)


def test_parts_of_fused_layers_keep_their_channel_scales() -> None:
    weight = quantize_weight(torch.randn(128, 208), format="w4a8")
    whole = unpack_weight(weight)
    for start, stop in ((0, 64), (64, 208), (16, 80)):
        part = unpack_weight(take_outputs(weight, start, stop))
        assert (part.codes == whole.codes[:, start:stop]).all()
        assert (part.scales == whole.scales[:, start:stop]).all()
        assert (part.channel_scales == whole.channel_scales[start:stop]).all()


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a model of 4-bit weights in groups of 128, for e4m3 activations."""
    monkeypatch.setattr(written, "GROUP", 128)
    (group,) = written.COMPRESSED["config_groups"].values()
    group = group | {"weights": group["weights"] | {"group_size": 128}, "input_activations": INPUTS}
    section = written.COMPRESSED | {"config_groups": {"group_0": group}}
    return written.write(tmp_path / "given", models.build(models.MIXTRAL), section)


@each_output
def test_a_checkpoint_is_folded_on_the_way_or_beforehand(
    dtype: Any, checkpoint: Path, tmp_path: Path
) -> None:
    exact = billhook.load(checkpoint, "cpu", dtype, narrow_activations=True)
    folded = billhook.load(checkpoint, "cpu", dtype, narrow_activations="folded")
    pack_checkpoint(checkpoint, tmp_path / "packed", ELEMENTS[dtype], fold=True)
    packed = billhook.load(tmp_path / "packed", "cpu")
    for model, name in ((exact, "u4b8"), (folded, "w4a8"), (packed, "w4a8")):
        layer = model.model.layers[1]
        assert layer.self_attn.q_proj.weight.format == layer.mlp.experts.w13.weight.format == name
        assert layer.self_attn.q_proj.activations == layer.mlp.experts.w2.activations == E4M3
    ids = torch.arange(8)[None]
    with torch.no_grad():
        want, got, again = (model(ids).logits.float() for model in (exact, folded, packed))
    assert torch.equal(got, again)
    assert 0 < (got - want).norm() < 0.2 * want.norm()


def test_what_cannot_be_folded_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    pack_checkpoint(checkpoint, tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="packed without --fold; pack the checkpoint again"):
        billhook.load(tmp_path / "packed", "cpu", narrow_activations="folded")
    with pytest.raises(InputError, match=r"True, False or 'folded' .got 'fold'"):
        billhook.load(checkpoint, "cpu", narrow_activations="fold")


def test_folded_layers_that_no_kernel_serves_are_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "why_unserved", lambda *asked: "9.0a alone folds scales")
    with pytest.raises(UnsupportedError, match=r"9\.0a alone"):
        billhook.load(checkpoint, "cpu", narrow_activations="folded")
