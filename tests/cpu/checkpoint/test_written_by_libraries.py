"""What the packages of the formats wrote (tests/data/checkpoints) is read as they mean it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from billhook.checkpoint import open_checkpoint
from billhook.checkpoint.data import read_array
from billhook.checkpoint.header import read_header
from billhook.formats import host

DATA = Path(__file__).parents[2] / "data/checkpoints"
MODULE = "model.layers.0.mlp.down_proj"
FORMATS = {
    "gptq-4bit": "u4b8",
    "gptq-4bit-asymmetric": "u4",
    "gptq-4bit-act-order": "u4b8",
    "gptq-8bit": "u8b128",
    "gptq-8bit-asymmetric-act-order": "u8",
    "gptq-v2-4bit-asymmetric": "u4",
    "gptq-auto-round": "u4b8",
    "awq": "u4",
    "pack-quantized-4bit": "u4b8",
    "pack-quantized-4bit-asymmetric": "u4",
    "pack-quantized-8bit-channel": "u8b128",
    "pack-quantized-8bit-asymmetric": "u8",
    "int-quantized": "u8b128",
    "int-quantized-tensor": "u8b128",
    "float-quantized": "fp8",
    "float-quantized-block": "fp8",
    "float-quantized-static": "fp8",
    "nvfp4-pack-quantized": "nvfp4",
    "mxfp4-pack-quantized": "mxfp4",
    "mxfp8-quantized": "mxfp8",
    "modelopt-nvfp4": "nvfp4",
    "modelopt-fp8": "fp8",
    "fp8-block": "fp8",
}


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether weights agree up to the roundings of a package that dequantizes in 16 bits."""
    wanted = expected.astype(np.float64)
    unit = 2.0**-7 if expected.dtype.name == "bfloat16" else 2.0**-10
    return bool((np.abs(found - wanted) <= unit * np.abs(wanted) + 2.0**-24).all())


def test_every_folder_is_read() -> None:
    assert {folder.name for folder in DATA.iterdir() if folder.is_dir()} == {
        *FORMATS,
        "gpt-oss",
        "auto-round-model",
    }


@pytest.mark.parametrize(("name", "form"), FORMATS.items())
def test_reads_back(name: str, form: str) -> None:
    source = open_checkpoint(DATA / name)
    fused = source.modules[MODULE]
    weight = source.read(MODULE)
    assert fused.format == form == host.split(weight.value).format
    assert fused.bias == (weight.bias is not None) == (name == "gptq-4bit")
    assert fused.ordered == (weight.input_order is not None) == name.endswith("act-order")
    assert fused.static == (weight.input_scales is not None) == name.endswith("static")
    if weight.input_scales is not None:
        assert weight.input_scales == np.float32(ml_dtypes.bfloat16(0.0371))
    expected = source.array("expected").T  # [k, n]
    if weight.input_order is not None:
        assert sorted(weight.input_order) == list(range(fused.k))
        expected = expected[weight.input_order]
    assert close(host.dequantize(weight.value, np.float64), expected)
    assert np.abs(expected.astype(np.float64)).max() > 0


def test_reads_back_a_model_with_exceptions() -> None:
    """8 bits in one layer, groups of 64 in two, 16 bits in one, and tied embeddings."""
    folder = DATA / "auto-round-model"
    source = open_checkpoint(folder)
    expected = {tensor.name: read_array(tensor) for tensor in read_header(folder / "expected.safetensors")}
    formats = {name.removeprefix("model.layers."): one.format for name, one in source.modules.items()}
    assert formats.pop("0.mlp.down_proj") == "u8b128"
    assert set(formats) == {
        *(f"{index}.{name}" for index in (0, 1) for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")),
        "0.self_attn.o_proj",
        "1.mlp.down_proj",
    }
    assert set(formats.values()) == {"u4b8"}
    assert source.modules["model.layers.1.mlp.gate_up_proj"].group_size == 64
    assert "model.layers.1.self_attn.o_proj.weight" in source.plain
    for name, fused in source.modules.items():
        wanted = np.concatenate([expected[f"{part.name}.weight"] for part in fused.parts]).T
        assert close(host.dequantize(source.read(name).value, np.float64), wanted)
        assert np.abs(wanted.astype(np.float64)).max() > 0


def test_reads_back_the_experts_of_gpt_oss() -> None:
    source = open_checkpoint(DATA / "gpt-oss")
    place = "model.layers.0.mlp.experts"
    assert {name: (one.n, one.k, one.num_experts) for name, one in source.modules.items()} == {
        f"{place}.w13": (32, 32, 2),
        f"{place}.w2": (16, 32, 2),
    }
    down = source.read(f"{place}.w2")
    assert (host.dequantize(down.value, np.float64) == source.array("expected_down_proj").astype(float)).all()
    both = source.read(f"{place}.w13")
    turns = [*range(0, 32, 2), *range(1, 32, 2)]  # gate and up take turns as they are stored
    expected = source.array("expected_gate_up_proj").astype(float)[..., turns]
    assert (host.dequantize(both.value, np.float64) == expected).all()
    assert both.bias is not None
    assert (both.bias == read_array(source.checkpoint.tensors[f"{place}.gate_up_proj_bias"])[:, turns]).all()
