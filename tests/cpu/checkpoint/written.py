"""Small checkpoints, written by the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[str, tuple[int, ...]]]

GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 64,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": 64,
            },
        }
    },
    "ignore": ["lm_head"],
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-5,
}
MOE = LLAMA | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}
_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "I32": np.int32,
    "I64": np.int64,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "U8": np.uint8,
    "I8": np.int8,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def gptq(n: int, k: int, group: int = 64, bits: int = 4) -> Shapes:
    groups = -(-k // group)
    return {
        "qweight": ("I32", (k * bits // 32, n)),
        "qzeros": ("I32", (groups, n * bits // 32)),
        "scales": ("F16", (groups, n)),
        "g_idx": ("I32", (k,)),
    }


def awq(n: int, k: int, group: int = 64) -> Shapes:
    groups = k // group
    return {
        "qweight": ("I32", (k, n // 8)),
        "qzeros": ("I32", (groups, n // 8)),
        "scales": ("F16", (groups, n)),
    }


def packed(n: int, k: int, group: int = 64) -> Shapes:
    return {
        "weight_packed": ("I32", (n, k // 8)),
        "weight_scale": ("BF16", (n, k // group)),
        "weight_shape": ("I64", (2,)),
    }


def plain(n: int, k: int) -> Shapes:
    return {"weight": ("BF16", (n, k))}


def fp8_block(n: int, k: int) -> Shapes:
    return {"weight": ("F8_E4M3", (n, k)), "weight_scale_inv": ("F32", (-(-n // 128), -(-k // 128)))}


def model(config: Mapping[str, Any], linear: Any) -> Shapes:
    """Return the tensors of a model of this config, each projection stored as `linear(n, k)`."""
    hidden, heads, kv_heads = (
        config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head = hidden // heads
    modules: dict[str, tuple[int, int]] = {}
    tensors: Shapes = {}
    for index in range(config["num_hidden_layers"]):
        place = f"model.layers.{index}"
        attention = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
        modules |= {f"{place}.self_attn.{name}_proj": (n, hidden) for name, n in attention.items()}
        modules[f"{place}.self_attn.o_proj"] = (hidden, heads * head)
        experts = config.get("num_experts", 0)
        inner = config["moe_intermediate_size"] if experts else config["intermediate_size"]
        for mlp in [f"experts.{expert}." for expert in range(experts)] or [""]:
            modules |= {f"{place}.mlp.{mlp}{name}_proj": (inner, hidden) for name in ("gate", "up")}
            modules[f"{place}.mlp.{mlp}down_proj"] = (hidden, inner)
        if experts:
            tensors[f"{place}.mlp.gate.weight"] = ("BF16", (experts, hidden))
        tensors[f"{place}.input_layernorm.weight"] = ("BF16", (hidden,))
    for name, (n, k) in modules.items():
        tensors |= {f"{name}.{part}": value for part, value in linear(n, k).items()}
    tensors["model.embed_tokens.weight"] = ("BF16", (32, hidden))
    tensors["lm_head.weight"] = ("BF16", (32, hidden))
    return tensors


def save(file: Path, tensors: Shapes) -> None:
    """Write zeros of these dtypes and shapes."""
    save_file({name: np.zeros(shape, _DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}, file)


def write(folder: Path, config: Mapping[str, Any], tensors: Shapes, shards: int = 1) -> Path:
    """Write a checkpoint folder; with several shards, tensors are dealt out and there is an index."""
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = dict(list(tensors.items())[shard::shards])
        save(folder / name, mine)
        weight_map |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
