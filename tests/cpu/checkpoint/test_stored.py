"""How modules are stored, told from their tensors; shapes and groups that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cpu.checkpoint.written import Shapes, awq, fp8_block, gptq, packed, plain

from billhook.checkpoint import Stored, Tensor
from billhook.checkpoint.stored import read_stored
from billhook.errors import WeightError

PACKINGS = ((4, 64),)


def read(shapes: Shapes, packings: tuple[tuple[int, int], ...] = PACKINGS) -> Stored | None:
    parts = {
        name: Tensor(f"m.{name}", Path("f"), dtype, shape, 0, 0) for name, (dtype, shape) in shapes.items()
    }
    return read_stored("m", parts, packings)


BIAS: Shapes = {"bias": ("F16", (128,))}
NVFP4: Shapes = {
    "weight_packed": ("U8", (128, 128)),
    "weight_scale": ("F8_E4M3", (128, 16)),
    "weight_global_scale": ("F32", (1,)),
}


@pytest.mark.parametrize(
    ("shapes", "stored", "scales"),
    [
        (gptq(128, 256), Stored("gptq", 4, 128, 256, (1, 64), True), "64"),
        (gptq(128, 256) | BIAS, Stored("gptq", 4, 128, 256, (1, 64), True, True), "64"),
        (gptq(128, 256, 256), Stored("gptq", 4, 128, 256, (1, 256), True), "channel"),
        (gptq(128, 256, 32, bits=8), Stored("gptq", 8, 128, 256, (1, 32), True), "32"),
        (gptq(128, 256, 32, bits=3), Stored("gptq", 3, 128, 256, (1, 32), True), "32"),
        (gptq(128, 160, 64), Stored("gptq", 4, 128, 160, (1, 64), True), "64"),
        (awq(128, 256), Stored("awq", 4, 128, 256, (1, 64), True), "64"),
        (awq(256, 256), Stored("awq", 4, 256, 256, (1, 64), True), "64"),
        (packed(128, 256), Stored("pack-quantized", 4, 128, 256, (1, 64)), "64"),
        (
            packed(128, 256) | {"weight_zero_point": ("I32", (16, 4))},
            Stored("pack-quantized", 4, 128, 256, (1, 64), True),
            "64",
        ),
        (fp8_block(200, 256), Stored("fp8", 8, 200, 256, (128, 128)), "128x128"),
        (
            {"weight": ("F8_E4M3", (128, 256)), "weight_scale": ("F32", ()), "input_scale": ("F32", ())},
            Stored("fp8", 8, 128, 256, (128, 256)),
            "tensor",
        ),
        (
            {"weight": ("F8_E4M3", (128, 256)), "weight_scale": ("BF16", (128, 1))},
            Stored("fp8", 8, 128, 256, (1, 256)),
            "channel",
        ),
        (
            {"weight": ("F8_E4M3", (128, 256)), "weight_scale": ("U8", (128, 8))},
            Stored("mxfp8", 8, 128, 256, (1, 32)),
            "32",
        ),
        (
            {"weight": ("I8", (128, 256)), "weight_scale": ("F32", (128, 1))},
            Stored("int-quantized", 8, 128, 256, (1, 256)),
            "channel",
        ),
        (NVFP4, Stored("nvfp4", 4, 128, 256, (1, 16)), "16"),
        (
            {
                "weight": ("U8", (128, 128)),
                "weight_scale": ("F8_E4M3", (128, 16)),
                "weight_scale_2": ("F32", ()),
                "input_scale": ("F32", ()),
            },
            Stored("nvfp4", 4, 128, 256, (1, 16)),
            "16",
        ),
        (
            {"weight_packed": ("U8", (128, 128)), "weight_scale": ("U8", (128, 8))},
            Stored("mxfp4", 4, 128, 256, (1, 32)),
            "32",
        ),
        (plain(128, 256), Stored("unquantized", 16, 128, 256), "-"),
        ({"weight": ("BF16", (256,))}, None, ""),
        ({"inv_freq": ("F32", (32,))}, None, ""),
    ],
)
def test_tells_the_format(shapes: Shapes, stored: Stored | None, scales: str) -> None:
    found = read(shapes)
    assert found == stored
    assert found is None or found.scales == scales


@pytest.mark.parametrize(("group", "bits"), [(128, 8), (64, 4), (-1, 4)])
def test_bits_of_packed_weights_come_from_the_config(group: int, bits: int) -> None:
    words, groups = 256 * bits // 32, 256 // (256 if group == -1 else group)
    shapes = packed(128, 256) | {
        "weight_packed": ("I32", (128, words)),
        "weight_scale": ("BF16", (128, groups)),
    }
    found = read(shapes, ((4, group), (8, group)) if group > 0 else ((bits, group),))
    assert found is not None
    assert (found.bits, found.k) == (bits, 256)


INT8: Shapes = {"weight": ("I8", (128, 256)), "weight_scale": ("F32", (128, 1))}


def without(shapes: Shapes, name: str) -> Shapes:
    return {other: value for other, value in shapes.items() if other != name}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (without(gptq(128, 256), "scales"), ["m.scales is missing"]),
        (without(gptq(128, 256), "qzeros"), ["m.qzeros is missing"]),
        (without(gptq(128, 256), "qweight"), ["no codes"]),
        (gptq(128, 256) | {"weight": ("F16", (128, 256))}, ["m.weight is extra"]),
        (gptq(128, 256) | {"qweight": ("F16", (32, 128))}, ["m.qweight", "I32", "F16"]),
        (gptq(128, 256) | {"qweight": ("I32", (32, 100))}, ["m.qweight", "128", "100"]),
        (gptq(128, 256) | {"qzeros": ("I32", (3, 16))}, ["m.qzeros", "[4, any]", "3"]),
        (gptq(128, 256) | {"qzeros": ("I32", (4, 20))}, ["m.qzeros", "20"]),
        (gptq(128, 256) | {"scales": ("F16", (0, 128))}, ["m.scales", "[0, 128]"]),
        (gptq(128, 256) | {"g_idx": ("I32", (255,))}, ["m.g_idx", "256", "255"]),
        (gptq(128, 256) | {"bias": ("F16", (127,))}, ["m.bias", "127"]),
        (awq(128, 256) | {"g_idx": ("I32", (256,))}, ["m.qweight"]),
        (without(packed(128, 256), "weight_shape"), ["m.weight_shape is missing"]),
        (packed(128, 256, 32), ["m.weight_scale", "4 bits in groups of 64"]),
        (packed(128, 256) | {"weight_scale": ("BF16", (127, 4))}, ["m.weight_scale", "127"]),
        (without(fp8_block(128, 256), "weight_scale_inv"), ["m.weight", "missing"]),
        (fp8_block(128, 256) | {"weight_scale_inv": ("F32", (3, 5))}, ["m.weight_scale_inv", "[3, 5]"]),
        (plain(128, 256) | {"qzeros": ("I32", (4, 16))}, ["m.qzeros is extra", "BF16 [128, 256]"]),
        (INT8 | {"input_scale": ("F32", (128,))}, ["m.input_scale", "one float", "[128]"]),
        (INT8 | {"input_scale": ("I32", ())}, ["m.input_scale", "one float", "I32"]),
        (
            fp8_block(128, 256) | {"weight_scale_inv": ("F8_E8M0", (3, 5))},
            ["m.weight_scale_inv", "128 x 128 block", "[3, 5]"],
        ),
        (fp8_block(128, 256) | {"weight_scale_inv": ("I32", (1, 2))}, ["m.weight_scale_inv", "I32"]),
        (NVFP4 | {"weight_scale": ("F8_E4M3", (128, 8))}, ["m.weight_scale", "[128, 16]"]),
        (without(NVFP4, "weight_global_scale"), ["m.weight_global_scale is missing"]),
        (NVFP4 | {"weight_packed": ("U8", (128, 132))}, ["m.weight_packed", "k = 264", "groups of 16"]),
        (
            {"weight_packed": ("U8", (128, 40)), "weight_scale": ("U8", (128, 3))},
            ["m.weight_packed", "k = 80", "groups of 32"],
        ),
        (
            {"weight": ("F8_E4M3", (128, 80)), "weight_scale": ("U8", (128, 3))},
            ["m.weight", "k = 80", "groups of 32"],
        ),
        ({"weight": ("I64", (128, 256))}, ["m.weight", "I64"]),
        (INT8 | {"weight_zero_point": ("I8", (64, 1))}, ["m.weight_zero_point", "[128, 1]", "64"]),
        (INT8 | {"weight_zero_point": ("I32", (128, 1))}, ["m.weight_zero_point", "I8", "I32"]),
        (INT8 | {"weight_scale": ("F32", (1, 2))}, ["m.weight_scale", "channel or group", "[1, 2]"]),
        (fp8_block(128, 256) | {"weight_zero_point": ("I8", (1, 2))}, ["m.weight_zero_point is extra"]),
    ],
)
def test_refuses_tensors_that_do_not_fit(shapes: Shapes, words: list[str]) -> None:
    with pytest.raises(WeightError) as caught:
        read(shapes)
    for word in words:
        assert word in str(caught.value)
