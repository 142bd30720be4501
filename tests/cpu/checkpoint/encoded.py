"""Random modules of every stored format, encoded bit by bit from their descriptions, and what they mean.

Nothing of the package is used here, since this is what its readers are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Rng = np.random.Generator
Array = NDArray[Any]


@dataclass
class Encoded:
    """A module's tensors, by the last part of their names, and its weights [n, k] in float64."""

    tensors: dict[str, Array]
    expected: Array


Encode = Callable[[Rng, int, int], Encoded]


def words(codes: Array, bits: int, axis: int) -> Array:
    """Join neighbours along an axis into int32, the first in the lowest bits."""
    moved = np.moveaxis(codes, axis, 0).astype(np.uint64)
    per = 32 // bits
    padded = np.zeros((-(-len(moved) // per) * per, *moved.shape[1:]), np.uint64)
    padded[: len(moved)] = moved
    joined = np.zeros((len(padded) // per, *moved.shape[1:]), np.uint64)
    for place in range(per):
        joined |= padded[place::per] << np.uint64(bits * place)
    return np.ascontiguousarray(np.moveaxis(joined.astype(np.uint32).view(np.int32), 0, axis))


def scales_of(rng: Rng, shape: tuple[int, ...], dtype: Any = np.float16) -> Array:
    return (2.0 ** rng.uniform(-6, 0, shape)).astype(dtype)


def spread(values: Array, size: int, k: int) -> Array:
    """Repeat what belongs to groups along the last axis."""
    return np.repeat(values.astype(np.float64), size, axis=-1)[..., :k]


def gptq(
    bits: int = 4, group: int = 64, symmetric: bool = True, version: int = 1, order: Array | None = None
) -> Encode:
    def encode(rng: Rng, n: int, k: int) -> Encoded:
        size = k if group == -1 else group
        groups = -(-k // size)
        codes = rng.integers(0, 2**bits, (n, k))
        zeros = np.full((n, groups), 2 ** (bits - 1))
        if not symmetric:
            zeros = rng.integers(1, 2**bits, (n, groups))
        scales = scales_of(rng, (n, groups))
        of = np.arange(k) // size
        if order is not None:
            of[order] = np.arange(k) // size
        expected = (codes - zeros[:, of]) * scales.astype(float)[:, of]
        tensors = {
            "qweight": words(codes.T, bits, 0),
            "qzeros": words(zeros.T - (2 - version), bits, 1),
            "scales": np.ascontiguousarray(scales.T),
            "g_idx": of.astype(np.int32),
        }
        return Encoded(tensors, expected)

    return encode


def awq(group: int = 64) -> Encode:
    turns = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleave(codes: Array) -> Array:
        return words(codes.reshape(len(codes), -1, 8)[..., turns].reshape(codes.shape), 4, 1)

    def encode(rng: Rng, n: int, k: int) -> Encoded:
        codes, zeros = rng.integers(0, 16, (n, k)), rng.integers(0, 16, (n, k // group))
        scales = scales_of(rng, zeros.shape)
        tensors = {
            "qweight": interleave(codes.T),
            "qzeros": interleave(zeros.T),
            "scales": np.ascontiguousarray(scales.T),
        }
        return Encoded(tensors, (codes - spread(zeros, group, k)) * spread(scales, group, k))

    return encode


def packed(
    bits: int = 4,
    group: int = 64,
    symmetric: bool = True,
    order: Array | None = None,
    dtype: Any = ml_dtypes.bfloat16,
) -> Encode:
    def encode(rng: Rng, n: int, k: int) -> Encoded:
        size, half = k if group == -1 else group, 2 ** (bits - 1)
        values = rng.integers(-half, half, (n, k))
        zeros = rng.integers(-half, half, (n, k // size)) if not symmetric else np.zeros((n, k // size), int)
        scales = scales_of(rng, zeros.shape, dtype)
        of = np.arange(k) // size
        tensors: dict[str, Array] = {
            "weight_packed": words(values + half, bits, 1),
            "weight_scale": scales,
            "weight_shape": np.array([n, k]),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros + half, bits, 0)
        if order is not None:
            of[order] = np.arange(k) // size
            tensors["weight_g_idx"] = of.astype(np.int32)
        return Encoded(tensors, (values - zeros[:, of]) * scales.astype(float)[:, of])

    return encode


def int_quantized(symmetric: bool = True) -> Encode:
    def encode(rng: Rng, n: int, k: int) -> Encoded:
        values = rng.integers(-128, 128, (n, k), dtype=np.int8)
        scales = scales_of(rng, (n, 1), np.float32)
        zeros = np.zeros((n, 1), np.int8) if symmetric else rng.integers(-128, 128, (n, 1), dtype=np.int8)
        tensors: dict[str, Array] = {"weight": values, "weight_scale": scales}
        if not symmetric:
            tensors["weight_zero_point"] = zeros
        return Encoded(tensors, (values.astype(float) - zeros) * scales)

    return encode


def e4m3(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Return any e4m3 numbers but NaN."""
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x80
    return codes.view(ml_dtypes.float8_e4m3fn)


def fp8(block: tuple[int, int], name: str = "weight_scale", powers: bool = False) -> Encode:
    """Return fp8 with a scale for so many n and k, -1 for all; with `powers`, stored as e8m0."""

    def encode(rng: Rng, n: int, k: int) -> Encoded:
        weight = e4m3(rng, (n, k))
        rows, columns = (whole if one == -1 else one for one, whole in zip(block, (n, k), strict=True))
        scales = scales_of(rng, (-(-n // rows), -(-k // columns)), np.float32)
        held = scales.reshape(()) if block == (-1, -1) else scales
        if powers:
            exponents = np.floor(np.log2(scales))
            scales = np.exp2(exponents)
            held = (exponents + 127).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
        steps = np.repeat(spread(scales, columns, k), rows, axis=0)[:n]
        return Encoded({"weight": weight, name: held}, weight.astype(float) * steps)

    return encode


def static(encode: Encode) -> Encode:
    """Return modules with a static scale for their inputs too."""

    def encode_static(rng: Rng, n: int, k: int) -> Encoded:
        found = encode(rng, n, k)
        return replace(
            found, tensors=found.tensors | {"input_scale": np.array(rng.uniform(0.01, 1), np.float32)}
        )

    return encode_static


def mxfp8(rng: Rng, n: int, k: int) -> Encoded:
    weight, powers = e4m3(rng, (n, k)), rng.integers(110, 130, (n, k // 32), dtype=np.uint8)
    steps = 2.0 ** (powers.astype(float) - 127)
    return Encoded({"weight": weight, "weight_scale": powers}, weight.astype(float) * spread(steps, 32, k))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nibbles(codes: Array) -> Array:
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def mxfp4(rng: Rng, n: int, k: int) -> Encoded:
    codes, powers = rng.integers(0, 16, (n, k)), rng.integers(110, 130, (n, k // 32), dtype=np.uint8)
    steps = spread(2.0 ** (powers.astype(float) - 127), 32, k)
    return Encoded({"weight_packed": nibbles(codes), "weight_scale": powers}, E2M1[codes] * steps)


def nvfp4(divides: bool = True, whole: float = 64.0) -> Encode:
    def encode(rng: Rng, n: int, k: int) -> Encoded:
        codes = rng.integers(0, 16, (n, k))
        scales = (e4m3(rng, (n, k // 16)).view(np.uint8) & 0x7F).view(ml_dtypes.float8_e4m3fn)
        names = ("weight_packed", "weight_global_scale") if divides else ("weight", "weight_scale_2")
        tensors = {names[0]: nibbles(codes), "weight_scale": scales}
        tensors[names[1]] = np.array([whole] if divides else 1 / whole, np.float32)
        return Encoded(tensors, E2M1[codes] * spread(scales, 16, k) / whole)

    return encode


def plain(rng: Rng, n: int, k: int) -> Encoded:
    weight = rng.standard_normal((n, k)).astype(ml_dtypes.bfloat16)
    return Encoded({"weight": weight}, weight.astype(float))


INTS: dict[str, Any] = {"type": "int", "strategy": "group", "group_size": 64}
FLOAT: dict[str, Any] = {"type": "float"}


def compressed(layout: str, activations: bool | dict[str, Any] = False, **weights: Any) -> dict[str, Any]:
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if activations:
        group["input_activations"] = {"num_bits": 8, "dynamic": True} if activations is True else activations
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def gptq_config(**change: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "desc_act": False} | change


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
# Name -> (packed format, quantization_config, encoder).
ALL: dict[str, tuple[str, dict[str, Any], Encode]] = {
    "gptq": ("u4b8", gptq_config(), gptq()),
    "gptq-v2": ("u4b8", gptq_config(checkpoint_format="gptq_v2"), gptq(version=2)),
    "gptq-channel": ("u4b8", gptq_config(group_size=-1), gptq(group=-1)),
    "gptq-asymmetric": ("u4", gptq_config(sym=False, group_size=32), gptq(group=32, symmetric=False)),
    "gptq-8bit": ("u8b128", gptq_config(bits=8), gptq(bits=8)),
    "gptq-8bit-asymmetric": ("u8", gptq_config(bits=8, sym=False), gptq(bits=8, symmetric=False)),
    "awq": ("u4", AWQ, awq()),
    "packed": ("u4b8", compressed("pack-quantized", num_bits=4, **INTS), packed()),
    "packed-asymmetric": (
        "u4",
        compressed("pack-quantized", num_bits=4, symmetric=False, **INTS),
        packed(symmetric=False),
    ),
    "packed-8bit": ("u8b128", compressed("pack-quantized", num_bits=8, **INTS), packed(8)),
    "packed-8bit-asymmetric": (
        "u8",
        compressed("pack-quantized", num_bits=8, symmetric=False, **INTS),
        packed(8, symmetric=False),
    ),
    "int-quantized": (
        "u8b128",
        compressed("int-quantized", True, num_bits=8, type="int", strategy="channel"),
        int_quantized(),
    ),
    "int-quantized-asymmetric": (
        "u8",
        compressed("int-quantized", True, num_bits=8, type="int", strategy="channel", symmetric=False),
        int_quantized(symmetric=False),
    ),
    "fp8-block": (
        "fp8",
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        fp8((128, 128), "weight_scale_inv"),
    ),
    "fp8-block-powers": (
        "fp8",
        {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
        fp8((128, 128), "weight_scale_inv", powers=True),
    ),
    "fp8-channel-powers": ("fp8", {"quant_method": "fp8"}, fp8((1, -1), powers=True)),
    "fp8-static": (
        "fp8",
        {"quant_method": "fp8", "activation_scheme": "static"},
        static(fp8((-1, -1))),
    ),
    "int-quantized-static": (
        "u8b128",
        compressed("int-quantized", {"num_bits": 8}, num_bits=8, type="int", strategy="channel"),
        static(int_quantized()),
    ),
    "fp8-mx": (
        "mxfp8",
        {"quant_method": "fp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
        fp8((1, 32), "weight_scale_inv", powers=True),
    ),
    "mxfp8-modelopt": ("mxfp8", {"quant_method": "modelopt", "quant_algo": "MXFP8"}, mxfp8),
    "fp8-tensor": ("fp8", {"quant_method": "fp8"}, fp8((-1, -1))),
    "fp8-channel": ("fp8", {"quant_method": "fbgemm_fp8"}, fp8((1, -1))),
    "float-quantized-group": (
        "fp8",
        compressed("float-quantized", True, num_bits=8, strategy="group", group_size=128, **FLOAT),
        fp8((1, 128)),
    ),
    "mxfp8": (
        "mxfp8",
        compressed("mxfp8-quantized", num_bits=8, strategy="group", group_size=32, **FLOAT),
        mxfp8,
    ),
    "mxfp4": (
        "mxfp4",
        compressed("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32, **FLOAT),
        mxfp4,
    ),
    "nvfp4": (
        "nvfp4",
        compressed("nvfp4-pack-quantized", True, num_bits=4, strategy="tensor_group", group_size=16, **FLOAT),
        nvfp4(),
    ),
    "nvfp4-modelopt": ("nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4(divides=False)),
}


@dataclass
class Written:
    """A checkpoint on disk and what it means: weights [n, k] of each module, and all its tensors."""

    folder: Path
    expected: dict[str, Array]
    tensors: dict[str, Array]


def module_sizes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return n and k of every projection of a Llama or of a Qwen3 with experts."""
    hidden, heads, kv_heads = (
        config[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    head = hidden // heads
    sizes: dict[str, tuple[int, int]] = {}
    for index in range(config["num_hidden_layers"]):
        place = f"model.layers.{index}"
        attention = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
        sizes |= {f"{place}.self_attn.{name}_proj": (n, hidden) for name, n in attention.items()}
        sizes[f"{place}.self_attn.o_proj"] = (hidden, heads * head)
        experts = config.get("num_experts", 0)
        inner = config["moe_intermediate_size"] if experts else config["intermediate_size"]
        for mlp in [f"experts.{expert}." for expert in range(experts)] or [""]:
            sizes |= {f"{place}.mlp.{mlp}{name}_proj": (inner, hidden) for name in ("gate", "up")}
            sizes[f"{place}.mlp.{mlp}down_proj"] = (hidden, inner)
    return sizes


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    section: Mapping[str, Any],
    encode: Encode,
    *,
    shards: int = 1,
    change: Callable[[dict[str, Array]], object] | None = None,
) -> Written:
    """Write a model with random weights, stored as a section of its config says.

    Args:
        folder: An empty folder.
        config: The model's config without the section.
        section: Its quantization_config.
        encode: How each projection is stored.
        shards: Files to deal the tensors out to.
        change: Damages the tensors before they are written.
    """
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    expected: dict[str, Array] = {}
    for name, (n, k) in module_sizes(config).items():
        one = encode(rng, n, k)
        tensors |= {f"{name}.{part}": array for part, array in one.tensors.items()}
        expected[name] = one.expected
    hidden = config["hidden_size"]
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = plain(rng, 32, hidden).tensors["weight"]
    for index in range(config["num_hidden_layers"]):
        norm = rng.standard_normal(hidden).astype(ml_dtypes.bfloat16)
        tensors[f"model.layers.{index}.input_layernorm.weight"] = norm
    if change:
        change(tensors)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    (folder / "tokenizer.json").write_text("{}")
    save(folder, tensors, shards)
    return Written(folder, expected, tensors)


def save(folder: Path, tensors: Mapping[str, Array], shards: int = 1) -> None:
    """Write safetensors files; with several, there is an index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        first, last = (len(tensors) * one // shards for one in (shard, shard + 1))
        mine = dict(list(tensors.items())[first:last])  # a module may lie in two
        save_file(mine, folder / name)
        weight_map |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
