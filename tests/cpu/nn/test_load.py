"""Quantized checkpoints, packed before or not, load as models that answer as their exact weights do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")
safetensors = pytest.importorskip("safetensors.torch")

from cpu.nn import models, written  # noqa: E402

import billhook  # noqa: E402
from billhook.checkpoint import pack_checkpoint  # noqa: E402
from billhook.errors import ConfigError, UnsupportedError, WeightError  # noqa: E402
from billhook.models import WeightFormat  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE  # noqa: E402
from billhook.nn.source import Layer, split_layer, take_outputs  # noqa: E402
from billhook.ops import quantize_weight  # noqa: E402


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def logits(model: Any) -> Any:
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        return model(ids).logits


def check(model: Any, reference: Any) -> None:
    got, want = logits(model), logits(reference)
    assert (got - want).norm() <= 0.02 * want.norm()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("packed", [False, True], ids=["checkpoint", "packed"])
@pytest.mark.parametrize("config", models.CONFIGS[:-1], ids=lambda config: config.model_type)
def test_a_checkpoint_loads(config: Any, packed: bool, tmp_path: Path) -> None:
    reference = models.build(config)
    folder = written.write(tmp_path / "given", reference, written.COMPRESSED)
    if packed:
        pack_checkpoint(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    model = billhook.load(folder, "cpu")
    layer = model.model.layers[0]
    assert type(layer.self_attn.q_proj) is QuantLinear
    assert type(layer.mlp.experts if hasattr(layer.mlp, "experts") else layer.mlp.up_proj) in (
        QuantLinear,
        QuantMoE,
    )
    check(model, reference)


@pytest.mark.parametrize("packed", [False, True], ids=["checkpoint", "packed"])
def test_inputs_in_activation_order_are_brought_into_it(packed: bool, tmp_path: Path) -> None:
    reference = models.build(models.LLAMA)
    folder = written.write(tmp_path / "given", reference, written.GPTQ)
    if packed:
        pack_checkpoint(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    model = billhook.load(folder, "cpu")
    assert model.model.layers[1].mlp.down_proj.input_order is not None
    check(model, reference)


@pytest.mark.parametrize("packed", [False, True], ids=["checkpoint", "packed"])
def test_experts_in_one_tensor_load(packed: bool, tmp_path: Path) -> None:
    reference = models.build(models.GPT_OSS)
    folder = written.write_gpt_oss(tmp_path / "given", reference)
    if packed:
        pack_checkpoint(folder, tmp_path / "packed")
        folder = tmp_path / "packed"
    model = billhook.load(folder, "cpu")
    assert model.model.layers[1].mlp.experts.w13.weight.format == "mxfp4"
    check(model, reference)


def edit(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.load_file(file)
    change(tensors)
    safetensors.save_file(tensors, file)


def test_layers_that_are_not_quantized_stay(tmp_path: Path) -> None:
    """Experts too, which checkpoints store one by one and transformers stacks."""
    reference = models.build(models.MIXTRAL)
    folder = written.write(tmp_path, reference, written.COMPRESSED)
    exact = {
        name: tensor for name, tensor in reference.state_dict().items() if "layers.1.mlp.experts" in name
    }

    def unquantize(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".1.block_sparse_moe.experts" in name]:
            del tensors[name]
        gate_up, down = exact.values()
        for expert in range(4):
            place = f"model.layers.1.block_sparse_moe.experts.{expert}"
            w1, w3 = gate_up[expert].chunk(2)
            for name, weight in (("w1", w1), ("w3", w3), ("w2", down[expert])):
                tensors[f"{place}.{name}.weight"] = weight.contiguous()

    edit(folder, unquantize)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"].append(r"re:model\.layers\.1\.block_sparse_moe")
    (folder / "config.json").write_text(json.dumps(config))
    model = billhook.load(folder, "cpu")
    assert type(model.model.layers[0].mlp.experts) is QuantMoE
    assert torch.equal(model.model.layers[1].mlp.experts.gate_up_proj, next(iter(exact.values())))
    check(model, reference)
    edit(folder, lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.3.w1.weight"))
    with pytest.raises((ConfigError, WeightError), match=r"experts\.(3\.w1|gate_up_proj)"):
        billhook.load(folder, "cpu")


def test_a_loaded_model_generates_as_its_folder_says(tmp_path: Path) -> None:
    reference = models.build(models.LLAMA)
    reference.generation_config.max_new_tokens = 3
    folder = written.write(tmp_path, reference, written.COMPRESSED)
    model = billhook.load(folder, "cpu", torch.bfloat16)
    assert model.generate(torch.arange(4)[None], do_sample=False).shape == (1, 7)


def test_tied_embeddings_are_tied(tmp_path: Path) -> None:
    config = type(models.LLAMA)(**models.LLAMA.to_dict() | {"tie_word_embeddings": True})
    reference = models.build(config)
    model = billhook.load(written.write(tmp_path, reference, written.COMPRESSED), "cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check(model, reference)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), WeightError, r"lacks model\.norm\.weight"),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), WeightError, r"has model\.extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(63)}),
            WeightError,
            r"model\.norm\.weight is torch\.float32 \(63,\); .* \(64,\)",
        ),
        (lambda t: t.pop("model.layers.1.self_attn.q_proj.weight_scale"), WeightError, "weight_scale"),
        (
            lambda t: [t.pop(name) for name in list(t) if "layers.1.self_attn.q_proj" in name],
            ConfigError,
            "q_proj",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: Any, error: Any, words: str, tmp_path: Path
) -> None:
    folder = written.write(tmp_path, models.build(models.LLAMA), written.COMPRESSED)
    edit(folder, change)
    with pytest.raises(error, match=words):
        billhook.load(folder, "cpu")


def test_biases_that_the_model_has_are_asked_for(tmp_path: Path) -> None:
    folder = written.write_gpt_oss(tmp_path, models.build(models.GPT_OSS))
    edit(folder, lambda tensors: tensors.pop("model.layers.0.mlp.experts.down_proj_bias"))
    with pytest.raises(WeightError, match=r"experts\.down_proj has no bias"):
        billhook.load(folder, "cpu")


def test_a_folder_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        billhook.load(tmp_path, "cpu")
    folder = written.write(tmp_path / "given", models.build(models.LLAMA), written.COMPRESSED)
    with pytest.raises(WeightError, match=r"float16 or bfloat16 \(got torch\.float32"):
        billhook.load(folder, "cpu", torch.float32)
    pack_checkpoint(folder, tmp_path / "packed")
    with pytest.raises(WeightError, match=r"packed for torch\.bfloat16 \(asked for torch\.float16\)"):
        billhook.load(tmp_path / "packed", "cpu", torch.float16)
    plain = tmp_path / "plain"
    models.build(models.LLAMA).save_pretrained(plain)
    with pytest.raises((ConfigError, UnsupportedError), match="quantiz"):
        billhook.load(plain, "cpu")
    (plain / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ConfigError, match=r"config\.json: transformers cannot read it"):
        billhook.load(plain, "cpu")


@pytest.mark.parametrize("format_", ["u4b8", "u4", "fp8", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("sizes", [(64, 128, 16), (16, 80, 112)], ids=["strips", "across strips"])
def test_the_parts_of_a_layer_are_its_outputs(sizes: tuple[int, ...], format_: str) -> None:
    weight = quantize_weight(
        torch.randn(64, sum(sizes)).bfloat16(), format=format_, group_size=None if format_ != "fp8" else -1
    )
    bias, x = torch.randn(sum(sizes)).bfloat16(), torch.randn(5, 64).bfloat16()
    whole, stored = QuantLinear(weight, bias)(x), WeightFormat(weight.weight, weight.group_size)
    parts = [QuantLinear(*part[:3])(x) for part in split_layer(Layer(weight, bias, None, stored), sizes)]
    assert torch.equal(torch.cat(parts, dim=-1), whole)
    assert take_outputs(weight, 0, sum(sizes)) is weight
