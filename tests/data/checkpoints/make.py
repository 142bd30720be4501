"""Write the checkpoints beside this script, each with the package that defines its format.

Every folder holds one module, `model.layers.0.mlp.down_proj` (or the experts of gpt-oss), and `expected`, its
weights as the same package dequantizes them; `auto-round-model` is a whole model with exceptions, its
dequantized weights in a file of their own. The packages are no dependencies; the tests read the files:

    pip install torch compressed-tensors gptqmodel autoawq auto-round nvidia-modelopt transformers
    python tests/data/checkpoints/make.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
MODULE = "model.layers.0.mlp.down_proj"
N, K = 16, 64
Tensors = dict[str, torch.Tensor]
Written = tuple[dict[str, Any], Tensors, torch.Tensor]  # quantization_config, tensors, expected


def weights(n: int = N, k: int = K) -> torch.Tensor:
    """Return weights of magnitudes that differ by channel, so that no two scales are alike."""
    return torch.randn(n, k) * torch.logspace(-2, 0.5, n)[:, None]


def linear(weight: torch.Tensor, bias: bool = False) -> torch.nn.Linear:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    made.weight.data = weight
    return made


def fit(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scales and zero points [n, groups] of integers."""
    grouped = weight.reshape(len(weight), -1, group)
    if symmetric:
        scales = grouped.abs().amax(-1) / (2 ** (bits - 1) - 1)
        return scales.half().float(), torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.int32)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, (-low / scales).round().clamp(1, 2**bits - 1).int()


def gptqmodel(
    bits: int, symmetric: bool, ordered: bool = False, v1: bool = True, bias: bool = False
) -> Written:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    group = 32
    order = torch.randperm(K) if ordered else torch.arange(K)
    g_idx = torch.empty(K, dtype=torch.int32)
    g_idx[order] = torch.arange(K, dtype=torch.int32) // group
    weight = weights()
    scales, zeros = fit(weight[:, order], bits, group, symmetric)
    layer = TorchLinear(bits, group, symmetric, ordered, K, N, bias=bias, register_buffers=True)
    layer.pack_original(linear(weight, bias), scales, zeros, g_idx)
    layer.post_init()
    expected = layer.dequantize_weight().T
    if v1:
        convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=group))
    names = ("qweight", "qzeros", "scales", "g_idx", *(["bias"] if bias else []))
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": ordered,
        "checkpoint_format": "gptq" if v1 else "gptq_v2",
        "meta": {"quantizer": f"gptqmodel:{version('gptqmodel')}"},
    }
    return config, {name: getattr(layer, name) for name in names}, expected


def auto_round() -> Written:
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    group, weight = 32, weights(2 * N)
    scales, _ = fit(weight, 4, group, True)
    layer = QuantLinear(4, group, K, 2 * N, False)
    layer.pack(linear(weight), scales, 8)
    codes = (weight.reshape(2 * N, -1, group) / scales[..., None]).round() + 8
    expected = ((codes.clamp(0, 15) - 8) * scales[..., None]).reshape(2 * N, K).half()
    config = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True, "desc_act": False}
    config["meta"] = {"quantizer": f"auto-round:{version('auto-round')}"}
    return config, {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}, expected


def autoawq() -> Written:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    group, weight = 32, weights(2 * N)
    scales, zeros = fit(weight, 4, group, False)
    layer = WQLinear_GEMM.from_linear(linear(weight), 4, group, scales=scales.T, zeros=zeros.T)
    expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, group).T
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    config["meta"] = {"quantizer": f"autoawq:{version('autoawq')}"}
    return config, {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}, expected


def compressed(layout: str, k: int = K, wide: bool = True, **args: Any) -> Written:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    described = QuantizationArgs(**args)
    activations = (
        None if wide else QuantizationArgs(num_bits=8, type=described.type, strategy="token", dynamic=True)
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=described, input_activations=activations)
    weight = weights(k=k).bfloat16()
    strategy = str(getattr(described.strategy, "value", described.strategy))
    grouped = weight
    if strategy == "block":
        grouped = grouped.reshape(N, -1, 128).transpose(0, 1).reshape(1, k // 128, -1)
    elif strategy == "tensor":
        grouped = grouped.reshape(1, -1)
    elif described.group_size:
        grouped = grouped.reshape(N, -1, described.group_size)
    tensors: Tensors = {"weight": weight}
    if strategy == "tensor_group":
        tensors["weight_global_scale"] = generate_gparam(weight.amin(), weight.amax())
    scale, zero = calculate_qparams(
        grouped.amin(-1), grouped.amax(-1), described, global_scale=tensors.get("weight_global_scale")
    )
    if strategy == "channel":
        scale, zero = scale[:, None], zero[:, None]
    tensors |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(tensors, scheme)
    expected = compressor.decompress(stored, scheme)["weight"]
    groups = {"group_0": {"targets": ["Linear"], "weights": described.model_dump(mode="json")}}
    if activations:
        groups["group_0"]["input_activations"] = activations.model_dump(mode="json")
    config = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups, "ignore": []}
    config["version"] = version("compressed-tensors")
    return config, stored, expected


def compressed_static() -> Written:
    """Return fp8 with one scale for the weights and a static one for their inputs."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    args = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=args)
    described = QuantizationConfig(config_groups={"group_0": scheme})
    model = torch.nn.ModuleDict({"layer": linear(weights().bfloat16())})
    apply_quantization_config(model, described)
    layer = model["layer"]
    layer.weight_scale.data.fill_(layer.weight.abs().max() / 448)
    layer.input_scale.data.fill_(0.0371)
    compressor = ModelCompressor(quantization_config=described)
    compressor.compress_model(model)
    tensors = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    compressor.decompress_model(model)
    config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config |= described.model_dump(mode="json", include={"config_groups", "ignore"})
    return config | {"version": version("compressed-tensors")}, tensors, layer.weight.detach()


def modelopt_nvfp4() -> Written:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = weights()
    quantized, scale, whole = NVFP4QTensor.quantize(weight, 16)
    expected = quantized.dequantize(torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16})
    tensors = {"weight": quantized._quantized_data, "weight_scale": scale, "weight_scale_2": whole}
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    config["producer"] = {"name": "modelopt", "version": version("nvidia-modelopt")}
    return config, tensors | {"input_scale": torch.tensor(0.5)}, expected.half()


def modelopt_fp8() -> Written:
    from modelopt.torch.export.quant_utils import to_quantized_weight

    weight = weights()
    scale = weight.abs().amax() / 448
    codes = to_quantized_weight(weight, scale, "fp8")
    config = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": []}
    config["producer"] = {"name": "modelopt", "version": version("nvidia-modelopt")}
    return config, {"weight": codes, "weight_scale": scale}, (codes.float() * scale).half()


def transformers_fp8() -> Written:
    from types import SimpleNamespace

    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = FineGrainedFP8Config()
    quantizer = SimpleNamespace(quantization_config=settings)
    stored = Fp8Quantize(quantizer).convert({"weight": weights(2 * 128, 128)})
    expected = Fp8Dequantize(quantizer)._dequantize_one(stored["weight"], stored["weight_scale_inv"])
    config = settings.to_dict() | {"written_by": f"transformers:{version('transformers')}"}
    return config, stored, expected.half()


def gpt_oss() -> tuple[dict[str, Any], Tensors, Tensors]:
    """Write random codes: that is every code, and scales that no quantizer would choose."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    config["read_by"] = f"transformers:{version('transformers')}"
    tensors, expected = {}, {}
    for name, n, k in (("gate_up_proj", 2 * N, 32), ("down_proj", N, 32)):
        blocks = torch.randint(0, 256, (2, n, k // 32, 16), dtype=torch.uint8)
        scales = torch.randint(110, 135, (2, n, k // 32), dtype=torch.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
        tensors[f"{name}_bias"] = torch.randn(2, n).bfloat16()
        expected[f"expected_{name}"] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    return config, tensors, expected


def write_whole_model(folder: Path) -> None:
    """Let AutoRound quantize a small Llama, some layers in ways of their own, and save it as it likes."""
    import transformers
    from auto_round import AutoRound
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a", pad_token="a")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=2, vocab_size=8, tie_word_embeddings=True, max_position_embeddings=64
    )
    exceptions = {
        "model.layers.0.mlp.down_proj": {"bits": 8},
        "model.layers.1.self_attn.o_proj": {"bits": 16},
        "model.layers.1.mlp.(gate|up)_proj": {"group_size": 64},
    }
    written = {}
    with tempfile.TemporaryDirectory() as scratch:
        for layout in ("auto_round", "fake"):
            torch.manual_seed(22)
            model = transformers.LlamaForCausalLM(config).half()
            quantizer = AutoRound(
                model,
                tokenizer,
                bits=4,
                group_size=32,
                iters=0,
                disable_opt_rtn=True,
                layer_config=exceptions,
            )
            quantizer.quantize_and_save(f"{scratch}/{layout}", format=layout)
            (config_file,) = Path(scratch, layout).rglob("config.json")
            written[layout] = config_file.parent
        folder.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(written["auto_round"] / name, folder / name)
        exact = load_file(written["fake"] / "model.safetensors")
        expected = {name: tensor.half() for name, tensor in exact.items() if "_proj" in name}
        save_file(expected, folder / "expected.safetensors")


def write(name: str, config: dict[str, Any], tensors: Tensors, dtype: str) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    save_file(
        {one: tensor.detach().contiguous() for one, tensor in tensors.items()}, folder / "model.safetensors"
    )
    content = {"architectures": ["Unknown"], "torch_dtype": dtype, "quantization_config": config}
    (folder / "config.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


GROUP: dict[str, Any] = {"strategy": "group", "group_size": 32}
MADE: dict[str, Callable[[], Written]] = {
    "gptq-4bit": lambda: gptqmodel(4, True, bias=True),
    "gptq-4bit-asymmetric": lambda: gptqmodel(4, False),
    "gptq-4bit-act-order": lambda: gptqmodel(4, True, ordered=True),
    "gptq-8bit": lambda: gptqmodel(8, True),
    "gptq-8bit-asymmetric-act-order": lambda: gptqmodel(8, False, ordered=True),
    "gptq-v2-4bit-asymmetric": lambda: gptqmodel(4, False, v1=False),
    "gptq-auto-round": auto_round,
    "awq": autoawq,
    "pack-quantized-4bit": lambda: compressed("pack-quantized", num_bits=4, **GROUP),
    "pack-quantized-4bit-asymmetric": lambda: compressed(
        "pack-quantized", num_bits=4, symmetric=False, **GROUP
    ),
    "pack-quantized-8bit-channel": lambda: compressed("pack-quantized", num_bits=8, strategy="channel"),
    "pack-quantized-8bit-asymmetric": lambda: compressed(
        "pack-quantized", num_bits=8, symmetric=False, **GROUP
    ),
    "int-quantized": lambda: compressed("int-quantized", wide=False, num_bits=8, strategy="channel"),
    "int-quantized-tensor": lambda: compressed("int-quantized", wide=False, num_bits=8, strategy="tensor"),
    "float-quantized": lambda: compressed(
        "float-quantized", wide=False, num_bits=8, type="float", strategy="channel"
    ),
    "float-quantized-block": lambda: compressed(
        "float-quantized", 256, num_bits=8, type="float", strategy="block", block_structure=[128, 128]
    ),
    "nvfp4-pack-quantized": lambda: compressed(
        "nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16
    ),
    "mxfp4-pack-quantized": lambda: compressed(
        "mxfp4-pack-quantized", num_bits=4, type="float", scale_dtype="torch.uint8", **GROUP
    ),
    "mxfp8-quantized": lambda: compressed(
        "mxfp8-quantized", num_bits=8, type="float", scale_dtype="torch.uint8", **GROUP
    ),
    "modelopt-nvfp4": modelopt_nvfp4,
    "modelopt-fp8": modelopt_fp8,
    "fp8-block": transformers_fp8,
    "float-quantized-static": compressed_static,
}


def main() -> None:
    for number, (name, make) in enumerate(MADE.items()):
        torch.manual_seed(number)
        config, tensors, expected = make()
        named = {f"{MODULE}.{part}": tensor for part, tensor in tensors.items()}
        dtype = "bfloat16" if expected.dtype == torch.bfloat16 else "float16"
        write(name, config, named | {"expected": expected}, dtype)
    torch.manual_seed(21)
    config, tensors, wanted = gpt_oss()
    place = "model.layers.0.mlp.experts"
    write("gpt-oss", config, {f"{place}.{part}": one for part, one in tensors.items()} | wanted, "bfloat16")
    write_whole_model(HERE / "auto-round-model")


if __name__ == "__main__":
    main()
