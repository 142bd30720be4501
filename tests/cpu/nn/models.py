"""Small transformers models with random weights, and their quantized layers as ordinary ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from billhook.formats.host import dequantize
from billhook.nn import QuantLinear
from billhook.ops import PackedWeight, unpack_weight

_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 96,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LLAMA = transformers.LlamaConfig(**_SMALL)
MIXTRAL = transformers.MixtralConfig(**_SMALL, num_local_experts=4)
QWEN3_MOE = transformers.Qwen3MoeConfig(**_SMALL, **_EXPERTS)
GPT_OSS = transformers.GptOssConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2)
CONFIGS = (
    LLAMA,
    transformers.MistralConfig(**_SMALL),
    transformers.Qwen2Config(**_SMALL),
    transformers.Qwen3Config(**_SMALL),
    MIXTRAL,
    QWEN3_MOE,
    transformers.Qwen2MoeConfig(**_SMALL, **_EXPERTS, shared_expert_intermediate_size=64),
    GPT_OSS,
)


def build(config: Any) -> Any:
    """Return a model with random weights and biases in bf16."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.eval()


def dense(weight: PackedWeight) -> torch.Tensor:
    """Return a packed weight dequantized, bf16 [.., n, k], as transformers stores weights."""
    return torch.from_numpy(dequantize(unpack_weight(weight), np.float32)).mT.bfloat16().contiguous()


def fill(ordinary: torch.nn.Module, packed: torch.nn.Module) -> None:
    """Give an ordinary layer, or the experts of one, the dequantized weights of its packed twin."""
    if isinstance(packed, QuantLinear):
        ordinary.weight.data = dense(packed.weight)
        return
    gate_up, down = dense(packed.w13.weight), dense(packed.w2.weight)
    if ordinary.is_transposed:  # gpt-oss: [k, n], gate and up in turns
        gate_up, down = torch.stack(gate_up.mT.chunk(2, dim=-1), dim=-1).flatten(-2), down.mT.contiguous()
    ordinary.gate_up_proj.data, ordinary.down_proj.data = gate_up, down
