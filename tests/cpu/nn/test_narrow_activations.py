"""Layers that quantize their inputs to 8 bits: by token, and by the static scales of checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

from cpu.nn import models, written  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import billhook  # noqa: E402
from billhook.checkpoint import open_packed, pack_checkpoint  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE, place, silu_and_mul  # noqa: E402
from billhook.ops import quantize_activations, quantize_weight, stack_weights  # noqa: E402

BF16, E4M3, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("u4b8", INT8), ("u4b8", E4M3), ("u4", INT8), ("u8b128", INT8), ("fp8", E4M3), ("mxfp4", E4M3)],
)
@pytest.mark.parametrize("scale", [None, 0.02])
def test_a_linear_layer_multiplies_quantized_inputs(name: str, dtype: Any, scale: float | None) -> None:
    weight, x = quantize_weight(torch.randn(64, 48).to(BF16), format=name), torch.randn(2, 3, 64).to(BF16)
    bias = torch.randn(48).to(BF16)
    codes, scales = quantize_activations(x.reshape(6, 64), dtype, scale)
    want = billhook.gemm(codes, weight, bias, token_scales=scales).view(2, 3, 48)
    layer = QuantLinear(weight, bias, activations=dtype, input_scale=scale)
    assert torch.equal(layer(x), want)
    assert f"{dtype} activations" in repr(layer)
    again = QuantLinear(quantize_weight(torch.randn(64, 48).to(BF16), format=name), bias, activations=dtype,
                        input_scale=None if scale is None else 1.0)  # fmt: skip
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.half()(x), want)


def test_layers_can_be_compiled() -> None:
    weight, x = quantize_weight(torch.randn(64, 48).to(BF16), format="fp8"), torch.randn(3, 64).to(BF16)
    layer = QuantLinear(weight, activations=E4M3, input_scale=0.02)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("scales", [None, (0.02, 0.5)])
def test_experts_multiply_quantized_inputs(scales: Any) -> None:
    w13, w2 = (
        stack_weights([quantize_weight(torch.randn(k, n).to(BF16), format="fp8") for _ in range(4)])
        for k, n in ((64, 96), (48, 64))
    )
    x, ids, factors = torch.randn(5, 64).to(BF16), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
    first, second = scales or (None, None)
    a, a_scales = quantize_activations(x, E4M3, first)
    inner = silu_and_mul(billhook.moe_gemm(a, w13, ids, token_scales=a_scales))
    b, b_scales = quantize_activations(inner, E4M3, second)
    rows = billhook.moe_gemm(b, w2, ids.reshape(-1, 1), factors.reshape(-1), token_scales=b_scales)
    layer = QuantMoE(w13, w2, activations=E4M3, input_scales=scales)
    assert torch.equal(layer(x, ids, factors), rows.view(5, 2, 64).sum(1))


def test_what_does_not_fit_is_refused() -> None:
    u4b8, nvfp4 = (quantize_weight(torch.randn(64, 48).to(BF16), format=name) for name in ("u4b8", "nvfp4"))
    for build, words in (
        (lambda: QuantLinear(nvfp4, activations=E4M3), "nvfp4 .* is not multiplied by torch.float8_e4m3fn"),
        (lambda: QuantLinear(u4b8, input_scale=0.5), "name their type"),
        (lambda: QuantLinear(u4b8, activations=INT8, input_scale=0.0), "positive"),
        (lambda: QuantLinear(u4b8, activations=INT8, input_scale=float("nan")), "positive"),
        (lambda: QuantLinear(u4b8, activations=INT8)(torch.randn(2, 64)), "bfloat16"),
    ):
        with pytest.raises(WeightError, match=words):
            build()


def load(folder: Path, packed: bool, **options: Any) -> Any:
    if packed:
        pack_checkpoint(folder, folder.parent / "packed")
        folder = folder.parent / "packed"
    return billhook.load(folder, "cpu", **options)


@pytest.mark.parametrize("packed", [False, True], ids=["checkpoint", "packed"])
@pytest.mark.parametrize(
    "config", [models.LLAMA, models.MIXTRAL, models.QWEN3_MOE], ids=lambda one: one.model_type
)
def test_static_scales_come_from_the_checkpoint(config: Any, packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    written.write(folder, models.build(config), written.FP8)
    tensors = load_file(folder / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(folder, packed, narrow_activations=True)
    attention = model.model.layers[1].self_attn
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        layer = getattr(attention, name)
        assert layer.activations == E4M3
        assert layer.input_scale == tensors[f"model.layers.1.self_attn.{name}.input_scale"]
    if config is not models.LLAMA:
        experts = model.model.layers[1].mlp.experts
        found = {
            name: float(one) for name, one in tensors.items() if "layers.1." in name and one.numel() == 1
        }
        for module, leaves in (
            (experts.w13, ("gate_proj", "up_proj", "w1", "w3")),
            (experts.w2, ("down_proj", "w2")),
        ):
            ends = tuple(f".{leaf}.input_scale" for leaf in leaves)
            assert module.activations == E4M3
            assert module.input_scale == max(one for name, one in found.items() if name.endswith(ends))
    plain = load(folder, False)
    assert plain.model.layers[1].self_attn.q_proj.activations is None
    ids = torch.arange(8)[None]
    with torch.no_grad():
        narrow, wide = model(ids).logits.float(), plain(ids).logits.float()
    assert 0 < (narrow - wide).norm() < 0.2 * wide.norm()


def test_scales_of_every_part_are_packed(tmp_path: Path) -> None:
    written.write(tmp_path / "given", models.build(models.MIXTRAL), written.FP8)
    pack_checkpoint(tmp_path / "given", tmp_path / "packed")
    tensors, folder = load_file(tmp_path / "given/model.safetensors"), open_packed(tmp_path / "packed")
    qkv = folder.read("model.layers.0.self_attn.qkv_proj").input_scales
    assert qkv.tolist() == [
        float(tensors[f"model.layers.0.self_attn.{one}_proj.input_scale"]) for one in "qkv"
    ]
    name = "model.layers.0.block_sparse_moe.experts"
    assert folder.read(f"{name}.w13").input_scales.tolist() == [
        [float(tensors[f"{name}.{expert}.{leaf}.input_scale"]) for leaf in ("w1", "w3")]
        for expert in range(4)
    ]


def test_layers_that_no_kernel_serves_stay_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.write(tmp_path, models.build(models.LLAMA), written.FP8)
    monkeypatch.setattr(place, "why_unserved", lambda *asked: "e4m3fn activations need SM89")
    with pytest.warns(
        UserWarning, match="activations of 14 GEMMs stay in 16 bits: e4m3fn activations need SM89"
    ):
        model = billhook.load(tmp_path, "cpu", narrow_activations=True)
    assert model.model.layers[1].self_attn.q_proj.activations is None
