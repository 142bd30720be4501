"""The GEMMs of published models, computed by hand, and how tensor parallelism and exceptions change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from billhook.config import Problem
from billhook.dtypes import BF16, F16
from billhook.errors import ConfigError, InputError, UnsupportedError
from billhook.models import Layer, layers, load_model

EXAMPLES = Path(__file__).parents[3] / "examples/models"


def example(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / name / "config.json").read_text())


def read(tmp_path: Path, config: dict[str, Any], tp: int = 1) -> dict[str, Layer]:
    """Return the config's layers by name."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    return {layer.name: layer for layer in layers(load_model(file), tp)}


def shapes(found: dict[str, Layer]) -> dict[str, tuple[int, int, int]]:
    return {name: (layer.n, layer.k, layer.count) for name, layer in found.items()}


LLAMA_8B = {
    1: {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    8: {"qkv": (768, 4096), "o": (4096, 512), "gate_up": (3584, 4096), "down": (4096, 1792)},
    # 8 key and value heads on 16 GPUs: each GPU keeps one; 2 query heads
    16: {"qkv": (512, 4096), "o": (4096, 256), "gate_up": (1792, 4096), "down": (4096, 896)},
}
LLAMA_70B = {
    1: {"qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672)},
    4: {"qkv": (2560, 8192), "o": (8192, 2048), "gate_up": (14336, 8192), "down": (8192, 7168)},
}
QWEN3_30B = {
    1: {"qkv": (5120, 2048), "o": (2048, 4096), "w13": (1536, 2048), "w2": (2048, 768)},
    2: {"qkv": (2560, 2048), "o": (2048, 2048), "w13": (768, 2048), "w2": (2048, 384)},
}
MIXTRAL = {
    1: {"qkv": (6144, 4096), "o": (4096, 4096), "w13": (28672, 4096), "w2": (4096, 14336)},
    8: {"qkv": (768, 4096), "o": (4096, 512), "w13": (3584, 4096), "w2": (4096, 1792)},
}


@pytest.mark.parametrize(
    ("name", "expected", "count", "act", "group_size"),
    [
        ("llama-3.1-8b-gptq-int4", LLAMA_8B, 32, "f16", 128),
        ("deepseek-r1-distill-llama-8b-quantized-w4a16", LLAMA_8B, 32, "bf16", 128),
        ("llama-3.3-70b-gptq-int4", LLAMA_70B, 80, "bf16", 128),
        ("qwen3-30b-a3b-gptq-int4", QWEN3_30B, 48, "bf16", 128),
        ("mixtral-8x7b-gptq", MIXTRAL, 32, "bf16", -1),
    ],
)
def test_published_models(
    name: str, expected: dict[int, dict[str, tuple[int, int]]], count: int, act: str, group_size: int
) -> None:
    model = load_model(EXAMPLES / name)
    for tp, layers_of_tp in expected.items():
        found = layers(model, tp)
        assert {layer.name: (layer.n, layer.k) for layer in found} == layers_of_tp
        assert {layer.count for layer in found} == {count}
        assert {layer.types for layer in found} == {f"{act}_u4b8_{act}_{act}"}
        assert {layer.group_size for layer in found} == {group_size}
        assert [layer.id for layer in found] == [f"{name}/tp{tp}/{one}" for one in layers_of_tp]


def test_moe_layers_ask_for_the_rows_that_engines_do() -> None:
    found = {layer.name: layer for layer in layers(load_model(EXAMPLES / "qwen3-30b-a3b-gptq-int4"))}
    common = {"types": found["qkv"].problem(1).types, "group_size": 128}
    assert found["qkv"].problem(5) == Problem(m=5, n=5120, k=2048, **common)
    assert found["w13"].problem(5) == Problem(m=5, n=1536, k=2048, num_experts=128, top_k=8, **common)
    assert found["w2"].problem(5) == Problem(m=40, n=2048, k=768, num_experts=128, top_k=1, **common)
    assert found["w13"].problem(5).rows_per_expert == found["w2"].problem(5).rows_per_expert


def test_experts_may_be_counted_by_their_name_in_transformers_5(tmp_path: Path) -> None:
    config = example("qwen3-30b-a3b-gptq-int4")
    renamed = {name: value for name, value in config.items() if name != "num_experts"}
    assert read(tmp_path, renamed | {"num_local_experts": config["num_experts"]}) == read(tmp_path, config)


GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 24,
    "hidden_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}


def test_gpt_oss_has_quantized_experts_alone(tmp_path: Path) -> None:
    found = read(tmp_path, GPT_OSS)
    assert shapes(found) == {"w13": (5760, 2880, 24), "w2": (2880, 2880, 24)}
    assert {(one.types, one.group_size, one.num_experts, one.bias) for one in found.values()} == {
        ("bf16_e2m1f_e8m0fnu_bf16", 32, 32, True)
    }


def test_activations_can_be_chosen() -> None:
    model = load_model(EXAMPLES / "llama-3.1-8b-gptq-int4")
    assert {layer.types for layer in layers(model, act=BF16)} == {"bf16_u4b8_bf16_bf16"}


@pytest.mark.parametrize("dtype", ["float32", "", "torch.float64"])
def test_other_activations_must_be_chosen(tmp_path: Path, dtype: str) -> None:
    config = example("llama-3.1-8b-gptq-int4") | {"torch_dtype": dtype}
    with pytest.raises(ConfigError, match=r"dtype.*--act"):
        read(tmp_path, config)
    assert layers(load_model(tmp_path), act=F16)


def test_dtype_has_two_names(tmp_path: Path) -> None:
    config = example("llama-3.1-8b-gptq-int4")
    del config["torch_dtype"]
    assert read(tmp_path, config | {"dtype": "bfloat16"})["qkv"].types == "bf16_u4b8_bf16_bf16"


@pytest.mark.parametrize(
    ("name", "tp", "words"),
    [
        ("llama-3.1-8b-gptq-int4", 3, "32 attention heads .* 3"),
        ("llama-3.1-8b-gptq-int4", 64, "32 attention heads .* 64"),
        ("llama-3.1-8b-gptq-int4", 32, "down k = 448, .* 128"),
        ("qwen3-30b-a3b-gptq-int4", 4, "w2 k = 192, .* 128"),
    ],
)
def test_a_size_that_does_not_divide_is_refused(name: str, tp: int, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        layers(load_model(EXAMPLES / name), tp)


def test_a_size_must_be_positive() -> None:
    with pytest.raises(InputError, match="tensor-parallel"):
        layers(load_model(EXAMPLES / "llama-3.1-8b-gptq-int4"), 0)


def test_key_value_heads_must_divide_or_be_divided(tmp_path: Path) -> None:
    config = example("llama-3.1-8b-gptq-int4") | {
        "num_attention_heads": 48,
        "num_key_value_heads": 6,
        "head_dim": 64,
    }
    with pytest.raises(UnsupportedError, match="6 key and value heads"):
        read(tmp_path, config, tp=4)


def test_qwen2_adds_a_bias_to_qkv_alone(tmp_path: Path) -> None:
    config = example("llama-3.1-8b-gptq-int4") | {"architectures": ["Qwen2ForCausalLM"]}
    assert {name for name, layer in read(tmp_path, config).items() if layer.bias} == {"qkv"}
    llama = example("llama-3.1-8b-gptq-int4") | {"attention_bias": True}
    assert {name for name, layer in read(tmp_path, llama).items() if layer.bias} == {"qkv", "o"}


QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1, 3],
}


def test_mixed_models_have_dense_sparse_and_shared_layers(tmp_path: Path) -> None:
    found = read(tmp_path, example("qwen3-30b-a3b-gptq-int4") | QWEN2_MOE)
    # sparse: every second layer (1, 3, 5, ... 23) but 1 and 3
    assert shapes(found) == {
        "qkv": (5120, 2048, 24),
        "o": (2048, 4096, 24),
        "gate_up": (12288, 2048, 14),
        "down": (2048, 6144, 14),
        "w13": (1536, 2048, 10),
        "w2": (2048, 768, 10),
        "shared_gate_up": (11264, 2048, 10),
        "shared_down": (2048, 5632, 10),
    }
    assert found["qkv"].bias


def test_a_moe_model_without_sparse_layers_is_dense(tmp_path: Path) -> None:
    config = example("qwen3-30b-a3b-gptq-int4") | {"mlp_only_layers": list(range(48))}
    assert list(read(tmp_path, config)) == ["qkv", "o", "gate_up", "down"]


def test_an_unknown_architecture_is_planned_like_llama_and_says_so(tmp_path: Path) -> None:
    config = example("llama-3.1-8b-gptq-int4") | {"architectures": ["NewForCausalLM"]}
    assert shapes(read(tmp_path, config)) == {name: (*shape, 32) for name, shape in LLAMA_8B[1].items()}
    assert "NewForCausalLM" in load_model(tmp_path).notes[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_key_value_heads": None}, "num_key_value_heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_an_unknown_architecture_that_is_not_like_llama_is_refused(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    config = example("llama-3.1-8b-gptq-int4") | {"architectures": ["NewForCausalLM"]} | change
    with pytest.raises((ConfigError, UnsupportedError), match=word):
        read(tmp_path, config)
