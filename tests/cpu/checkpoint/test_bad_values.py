"""Values that no checkpoint should hold are refused, naming file, tensor, place and value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu.checkpoint import encoded
from cpu.checkpoint.encoded import ALL, Array, Encode, compressed, gptq, gptq_config, packed, write_model
from cpu.checkpoint.written import LLAMA

from billhook.checkpoint import open_checkpoint
from billhook.errors import BillhookError

ONE = LLAMA | {"num_hidden_layers": 1}
MODULE = "model.layers.0.mlp.down_proj"
Change = Callable[[dict[str, Array]], object]


def put(part: str, at: tuple[int, ...], value: Any) -> Change:
    """Return what puts a value into a tensor of the module; 8-bit floats take codes."""

    def change(tensors: dict[str, Array]) -> None:
        array = tensors[f"{MODULE}.{part}"]
        (array.view(np.uint8) if array.dtype.name.startswith("float8") else array)[at] = value

    return change


def flip(part: str) -> Change:
    """Return what puts a module's first and last group of a g_idx into each other's place but once."""

    def change(tensors: dict[str, Array]) -> None:
        tensors[f"{MODULE}.{part}"][0] = tensors[f"{MODULE}.{part}"][-1]

    return change


def swap(part: str) -> Change:
    def change(tensors: dict[str, Array]) -> None:
        array = tensors[f"{MODULE}.{part}"]
        array[[0, -1]] = array[[-1, 0]]

    return change


def shape(n: int, k: int) -> Change:
    return put("weight_shape", (slice(None),), [n, k])


ORDERED = compressed("pack-quantized", num_bits=4, actorder="group", **encoded.INTS)


@pytest.mark.parametrize(
    ("section", "encode", "change", "words"),
    [
        (gptq_config(), gptq(), put("scales", (3, 5), np.nan), ["scales", "nan at [3, 5]"]),
        (gptq_config(), gptq(), put("scales", (0, 0), np.inf), ["scales", "inf at [0, 0]"]),
        (
            gptq_config(),
            gptq(),
            put("qzeros", (1, 2), 0x77787777),
            ["qzeros", "stored as 7", "got 8 at [1, 20]"],
        ),
        (gptq_config(), gptq(version=2), lambda tensors: None, ["qzeros", "those of gptq_v2"]),
        (
            gptq_config(checkpoint_format="gptq_v2"),
            gptq(),
            lambda tensors: None,
            ["qzeros", "those of gptq,", "checkpoint_format"],
        ),
        (gptq_config(), gptq(symmetric=False), lambda tensors: None, ["qzeros", "symmetric"]),
        (gptq_config(), gptq(), swap("g_idx"), ["g_idx", "desc_act = false"]),
        (
            gptq_config(desc_act=True),
            gptq(),
            flip("g_idx"),
            ["g_idx", "63 of 512", "group 0", "no permutation"],
        ),
        (gptq_config(desc_act=True), gptq(), put("g_idx", (7,), 8), ["g_idx", "0 to 7", "got 8 at [7]"]),
        (gptq_config(desc_act=True), gptq(), put("g_idx", (7,), -1), ["g_idx", "got -1 at [7]"]),
        (ALL["awq"][1], ALL["awq"][2], put("scales", (1, 9), -np.inf), ["scales", "-inf at [1, 9]"]),
        (ALL["packed"][1], packed(), put("weight_scale", (4, 2), np.nan), ["weight_scale", "nan at [4, 2]"]),
        (ALL["packed"][1], packed(), shape(256, 511), ["weight_shape", "[256, 512]", "[256, 511]"]),
        (
            ORDERED,
            lambda rng, n, k: packed(order=np.arange(k))(rng, n, k),
            flip("weight_g_idx"),
            ["weight_g_idx", "no permutation"],
        ),
        (*ALL["int-quantized"][1:], put("weight_scale", (2, 0), np.inf), ["weight_scale", "inf at [2, 0]"]),
        (*ALL["fp8-block"][1:], put("weight", (17, 4), 0x7F), ["down_proj.weight:", "127 at [17, 4]"]),
        (*ALL["fp8-block"][1:], put("weight_scale_inv", (1, 1), -1), ["weight_scale_inv", "-1.0 at [1, 1]"]),
        (*ALL["fp8-static"][1:], put("input_scale", (), 0), ["input_scale", "must be positive", "0.0"]),
        (*ALL["fp8-static"][1:], put("input_scale", (), -1), ["input_scale", "must not be negative"]),
        (*ALL["int-quantized-static"][1:], put("input_scale", (), np.nan), ["input_scale", "finite", "nan"]),
        (
            *ALL["fp8-block-powers"][1:],
            put("weight_scale_inv", (1, 0), 0xFF),
            ["weight_scale_inv", "255 at [1, 0]"],
        ),
        (*ALL["fp8-tensor"][1:], put("weight_scale", (), np.nan), ["weight_scale", "nan"]),
        (*ALL["mxfp8"][1:], put("weight", (0, 0), 0xFF), ["down_proj.weight:", "255 at [0, 0]"]),
        (*ALL["mxfp8"][1:], put("weight_scale", (1, 3), 0xFF), ["weight_scale", "255 at [1, 3]"]),
        (*ALL["mxfp4"][1:], put("weight_scale", (1, 3), 0xFF), ["weight_scale", "255 at [1, 3]"]),
        (*ALL["nvfp4"][1:], put("weight_scale", (1, 3), 0x7F), ["weight_scale", "127 at [1, 3]"]),
        (*ALL["nvfp4"][1:], put("weight_scale", (1, 3), 0x81), ["weight_scale", "negative", "129 at [1, 3]"]),
        (*ALL["nvfp4"][1:], put("weight_global_scale", (0,), 0), ["weight_global_scale", "positive", "0.0"]),
        (*ALL["nvfp4"][1:], put("weight_global_scale", (0,), np.inf), ["weight_global_scale", "inf"]),
        (*ALL["nvfp4"][1:], put("weight_global_scale", (0,), 1e-42), ["weight_global_scale", "reciprocal"]),
    ],
)
def test_names_file_tensor_and_value(
    tmp_path: Path, section: dict[str, Any], encode: Encode, change: Change, words: list[str]
) -> None:
    write_model(tmp_path, ONE, section, encode, change=change)
    with pytest.raises(BillhookError) as caught:
        source = open_checkpoint(tmp_path)
        for name in source.modules:
            source.read(name)
    for word in ["model.safetensors: tensor model.layers.0", *words]:
        assert word in str(caught.value)


def lacking(name: str, encode: Encode) -> Encode:
    """Return modules without one of their tensors."""

    def encode_rest(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        found = encode(rng, n, k)
        return encoded.Encoded(
            {other: array for other, array in found.tensors.items() if other != name}, found.expected
        )

    return encode_rest


@pytest.mark.parametrize(
    ("section", "encode", "words"),
    [
        (gptq_config(bits=3, group_size=64), gptq(), ["4 bits", "3 bits"]),
        (ALL["packed"][1], packed(symmetric=False), ["zero points", "symmetric weights"]),
        (ALL["packed-asymmetric"][1], packed(), ["symmetric weights", "zero points"]),
        (gptq_config(group_size=48), gptq(group=48), ["must split k = 512", "[11, 256]"]),
        (ALL["fp8-block"][1], encoded.fp8((1, -1), "weight_scale_inv"), ["channel", "128"]),
        (gptq_config(desc_act=True), lacking("g_idx", gptq()), ["down_proj has no g_idx", "act-order"]),
        (
            encoded.compressed("pack-quantized", num_bits=4, actorder="group", **encoded.INTS),
            packed(),
            ["down_proj has no g_idx or weight_g_idx", "act-order"],
        ),
        (ALL["mxfp4"][1], encoded.nvfp4(), ["nvfp4", "mxfp4"]),
        (gptq_config(), encoded.awq(), ["awq", "gptq"]),
        (ALL["float-quantized-group"][1], encoded.int_quantized(), ["int-quantized 8-bit", "fp8"]),
        (ALL["int-quantized"][1], encoded.fp8((1, -1)), ["fp8 8-bit", "u8b128"]),
    ],
)
def test_tensors_and_config_must_agree(
    tmp_path: Path, section: dict[str, Any], encode: Encode, words: list[str]
) -> None:
    write_model(tmp_path, ONE, section, encode)
    with pytest.raises(BillhookError) as caught:
        open_checkpoint(tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    write_model(tmp_path, ONE, gptq_config(), gptq())
    source = open_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    last = max(source.checkpoint.tensors.values(), key=lambda tensor: tensor.end)
    file.write_bytes(file.read_bytes()[: last.begin + 1])
    with pytest.raises(BillhookError, match=r"truncated: tensor .* lacks its last \d+ bytes"):
        for name in source.modules:
            source.read(name)
        for name in source.plain:
            source.array(name)
