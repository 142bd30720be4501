"""Checkpoints of small transformers models, quantized and written as other tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from billhook.dtypes import BF16, E2M1F
from billhook.formats import fp8, host, mx

GROUP = 32
_WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _WEIGHTS}},
    "ignore": ["lm_head", "re:.*gate$", "re:.*shared_expert_gate$"],
}
FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": True}


def write(folder: Path, model: Any, section: dict[str, Any]) -> Path:
    """Write a model with its projections quantized, and give it the weights that they stand for."""
    model.save_pretrained(folder)
    tensors = {}
    exact = dict(load_file(folder / "model.safetensors"))
    for name, tensor in exact.items():
        if not name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight")):
            tensors[name] = tensor
            continue
        place = name.removesuffix("weight")
        store = {"compressed-tensors": _compress, "fp8": _store_fp8}.get(section["quant_method"], _store_gptq)
        parts, exact[name] = store(tensor.T.float().numpy())
        tensors |= {f"{place}{part}": value.contiguous() for part, value in parts.items()}
    # transformers reads what the weights stand for, in its own way of naming and stacking
    save_file(exact, folder / "model.safetensors", {"format": "pt"})
    reference = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    model.load_state_dict(reference.state_dict())
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return folder


def write_gpt_oss(folder: Path, model: Any) -> Path:
    """Write gpt-oss with its experts in MXFP4, and give it the weights that they stand for."""
    model.save_pretrained(folder)
    tensors = dict(load_file(folder / "model.safetensors"))
    exact = model.state_dict()
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        value = mx.quantize(tensors.pop(name).float().numpy(), E2M1F)  # [experts, k, n]
        codes = np.moveaxis(value.codes, 1, 2)
        blocks = (codes[..., ::2] | codes[..., 1::2] << 4).reshape(*codes.shape[:2], -1, 16)
        tensors[f"{name}_blocks"] = torch.from_numpy(np.ascontiguousarray(blocks))
        tensors[f"{name}_scales"] = torch.from_numpy(np.moveaxis(value.scales, 1, 2).copy())
        exact[name] = torch.from_numpy(mx.dequantize(value)).bfloat16()
    model.load_state_dict(exact)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    section = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return folder


def _words(codes: np.ndarray) -> torch.Tensor:
    """Join eight codes along the first axis into a word, the first in the lowest bits."""
    eight = codes.reshape(-1, 8, codes.shape[1]).astype(np.uint32)
    return torch.from_numpy(
        (eight << np.arange(0, 32, 4, dtype=np.uint32)[:, None]).sum(1, np.uint32).view(np.int32)
    )


def _tensor(scales: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(scales.astype(np.float32)).bfloat16()


def _exact(weights: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(weights.T.copy()).bfloat16()


def _compress(weights: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    value = host.quantize(weights, "u4b8", GROUP, BF16)
    parts = {
        "weight_packed": _words(value.codes).T,
        "weight_scale": _tensor(value.scales).T,
        "weight_shape": torch.tensor(weights.T.shape),
    }
    return parts, _exact(host.dequantize(value))


def _store_fp8(weights: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Store with one scale for the weights, and one for their inputs that differs from layer to layer."""
    value = fp8.quantize(weights, fp8.TENSOR)
    parts = {
        "weight": torch.from_numpy(value.codes.T.copy()).view(torch.float8_e4m3fn),
        "weight_scale": torch.from_numpy(value.scales.reshape(())),
        "input_scale": torch.tensor(0.002 + float(value.scales.item()) * 10),
    }
    return parts, _exact(fp8.dequantize(value))


def _store_gptq(weights: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Store rows as they come, while groups are of rows that lie apart: act-order."""
    k, n = weights.shape
    order = np.random.default_rng(k).permutation(k)
    value = host.quantize(weights[order], "u4b8", GROUP, BF16)
    codes, exact, group = np.empty_like(value.codes), np.empty_like(weights), np.empty(k, np.int32)
    codes[order], exact[order], group[order] = value.codes, host.dequantize(value), np.arange(k) // GROUP
    parts = {
        "qweight": _words(codes),
        "qzeros": torch.full((k // GROUP, n // 8), 0x77777777, dtype=torch.int32),
        "scales": _tensor(value.scales),
        "g_idx": torch.from_numpy(group),
    }
    return parts, _exact(exact)
