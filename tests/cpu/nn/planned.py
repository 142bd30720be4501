"""Checkpoints of models that transformers builds, for plans and what is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from cpu.checkpoint import encoded
from cpu.checkpoint.encoded import compressed, packed, write_model
from cpu.checkpoint.written import LLAMA, MOE

COMMON = {"vocab_size": 32, "num_hidden_layers": 2}
DENSE = LLAMA | COMMON | {"model_type": "llama"}
EXPERTS = MOE | COMMON | {"model_type": "qwen3_moe", "moe_intermediate_size": 256}
DYNAMIC = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token", "symmetric": True}
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
W4A8 = (compressed("pack-quantized", DYNAMIC, **INT4), packed(group=128))


def write(folder: Path, config: dict[str, Any], section: dict[str, Any], encode: encoded.Encode) -> Path:
    """Write a model that transformers builds: with its norms and routers."""
    hidden = config["hidden_size"]
    sizes = {"model.norm": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        sizes[f"{layer}.post_attention_layernorm"] = (hidden,)
        if config is EXPERTS:
            head = hidden // config["num_attention_heads"]
            sizes |= {f"{layer}.self_attn.{name}_norm": (head,) for name in "qk"}
            sizes[f"{layer}.mlp.gate"] = (config["num_experts"], hidden)

    def add(tensors: dict[str, encoded.Array]) -> None:
        tensors |= {f"{name}.weight": np.ones(shape, ml_dtypes.bfloat16) for name, shape in sizes.items()}

    folder.mkdir()
    write_model(folder, config, section, encode, change=add)
    return folder
