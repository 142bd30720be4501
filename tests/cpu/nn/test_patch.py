"""Transformers models quantized in memory answer as the same models with dequantized weights do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
transformers = pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

from cpu.nn import models  # noqa: E402

import billhook  # noqa: E402
from billhook.errors import InputError, UnsupportedError, WeightError  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE  # noqa: E402


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("config", models.CONFIGS, ids=lambda config: config.model_type)
def test_a_patched_model_answers_as_its_dequantized_weights_do(config: Any) -> None:
    model = models.build(config)
    reference = copy.deepcopy(model)
    names = billhook.quantize_model(model, group_size=32)
    assert "lm_head" not in names
    for name in names:
        models.fill(reference.get_submodule(name), model.get_submodule(name))
    ids = torch.randint(0, config.vocab_size, (2, 7))
    with torch.no_grad():
        got, want = model(ids).logits, reference(ids).logits
    assert (got - want).norm() <= 0.02 * want.norm()


def test_every_layer_but_the_ignored_is_quantized() -> None:
    model = models.build(models.MIXTRAL)
    names = billhook.quantize_model(
        model, ignore=["lm_head", "k_proj", r"re:model\.layers\.1\."], group_size=-1
    )
    assert names == [f"model.layers.0.self_attn.{one}_proj" for one in "qvo"] + ["model.layers.0.mlp.experts"]
    kinds = {name: type(model.get_submodule(name)) for name in names}
    assert kinds.pop("model.layers.0.mlp.experts") is QuantMoE
    assert set(kinds.values()) == {QuantLinear}
    assert type(model.model.layers[0].self_attn.k_proj) is torch.nn.Linear


def test_layers_of_sizes_that_kernels_do_not_take_stay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 1)).bfloat16()
    assert billhook.quantize_model(model, "mxfp4") == ["0"]
    assert model[0].weight.format == "mxfp4"


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(InputError, match="no linear layer"):
        billhook.quantize_model(torch.nn.ReLU())
    with pytest.raises(InputError, match="regular expression"):
        billhook.quantize_model(models.build(models.LLAMA), ignore=["re:("])
    with pytest.raises(WeightError, match="u5"):
        billhook.quantize_model(models.build(models.LLAMA), "u5")
    model = models.build(models.MIXTRAL)
    model.model.layers[0].mlp.experts.act_fn = torch.nn.GELU()
    with pytest.raises(UnsupportedError, match=r"MixtralExperts.*GELU"):
        billhook.quantize_model(model)


def test_a_patched_model_generates_and_is_stored() -> None:
    model = models.build(models.MIXTRAL)
    other = models.build(models.MIXTRAL)
    for one in (model, other):
        billhook.quantize_model(one)
    other.load_state_dict(model.state_dict())
    ids = torch.randint(0, 96, (1, 5))
    with torch.no_grad():
        got = [one.generate(ids, max_new_tokens=6, do_sample=False) for one in (model, other)]
    assert torch.equal(*got)
