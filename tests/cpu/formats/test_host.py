"""Weights of every format, quantized, packed and unpacked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.dtypes import BF16, F16, F32, U4, DType
from billhook.errors import WeightError
from billhook.formats import affine, fp8, host, nvfp4
from billhook.formats.blocks import Block
from billhook.formats.elements import numpy_dtype
from billhook.formats.packed import find_format, read_number
from billhook.weights import FORMATS

SIZES = st.integers(1, 6).map(lambda count: 32 * count)


def weights(k: int, n: int, experts: int = 0, seed: int = 0) -> np.ndarray:
    shape = (experts, k, n) if experts else (k, n)
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(
    k=SIZES, n=SIZES, experts=st.integers(0, 2), act=st.sampled_from([F16, BF16]), seed=st.integers(0, 2**31)
)
def test_a_weight_survives_packing(*, name: str, k: int, n: int, experts: int, act: DType, seed: int) -> None:
    held = find_format(name)
    act = act if act in held.activations else BF16
    for size in held.group_sizes:
        value = host.quantize(weights(k, n, experts, seed), name, size, act)
        packed = host.pack(value, act)
        back = host.unpack(packed)
        want = host.dequantize(value, np.float64)
        if name == "fp8":  # its scales are rounded to the activations' type
            scales = value.scales.astype(numpy_dtype(act)).astype(np.float32)
            want = host.dequantize(replace(value, scales=scales), np.float64)
        assert (host.dequantize(back, np.float64) == want).all()
        again = host.pack(back, act)
        for mine, theirs in zip(packed.tensors("a.").values(), again.tensors("a.").values(), strict=True):
            assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_are_what_the_format_has(name: str) -> None:
    held = find_format(name)
    dense = host.pack(host.quantize(weights(128, 80), name))
    tensors = host.pack(host.quantize(weights(128, 80, 3), name)).tensors("layer.")
    assert tensors["layer.meta"].tolist() == [held.number, 80, 128, held.group_sizes[0], 3]
    assert tensors["layer.codes"].dtype == np.int32
    assert tensors["layer.codes"].nbytes == 3 * 2 * 2 * 64 * 64 * held.weight.bits // 8
    assert tensors["layer.codes"].shape[1:] == dense.codes.shape
    groups = 128 // held.group_sizes[0]
    assert tensors["layer.scales"].shape == (3, 2, groups, 64)
    assert ("layer.zeros" in tensors) == (name in ("u4", "u8"))
    assert ("layer.global_scales" in tensors) == (name == "nvfp4")
    assert ("layer.channel_scales" in tensors) == (name == "w4a8")
    assert read_number(held.number) == held


@pytest.mark.parametrize(
    "block", [fp8.TENSOR, fp8.CHANNEL, fp8.GROUP, fp8.BLOCK, Block(128, 64), Block(128, -1)], ids=str
)
def test_fp8_scales_are_spread_over_their_columns(block: Block) -> None:
    for experts in (0, 2):
        value = fp8.quantize(weights(320, 208, experts), block)
        rounded = replace(value, scales=value.scales.astype(np.float16).astype(np.float32))
        packed = host.pack(value, F16)
        assert packed.group_size == block.k
        got = host.dequantize(host.unpack(packed), np.float64)
        assert (got == host.dequantize(rounded, np.float64)).all()


def test_scales_take_the_type_of_the_activations() -> None:
    for scale, act, want in ((F16, None, F16), (BF16, None, BF16), (F32, None, BF16), (F16, BF16, BF16)):
        value = affine.quantize(weights(64, 32), U4, 32, scale)
        packed = host.pack(value, act)
        assert packed.scales.dtype == packed.zeros.dtype == numpy_dtype(want)
    assert host.pack(host.quantize(weights(64, 32), "mxfp4"), BF16).scales.dtype == np.uint8


def test_what_kernels_do_not_read_is_refused() -> None:
    u4, mx = affine.quantize(weights(64, 32), U4, 32), host.quantize(weights(64, 32), "mxfp8")
    small = fp8.quantize(weights(64, 32), Block(64))
    wide = affine.quantize(weights(64, 32) * 1e6, U4, 32, F32)
    packed, parts = host.pack(u4), host.split(u4)
    nv = host.split(nvfp4.quantize(weights(64, 32, 2)))
    for call, words in (
        (lambda: host.pack(affine.quantize(weights(64, 40), U4, 32)), "multiples of 16"),
        (lambda: host.pack(affine.quantize(weights(64, 32), U4, 16)), "group_size 128 or 64 or 32 or -1"),
        (lambda: host.pack(mx, F16), "mxfp8 weights are multiplied by bf16"),
        (lambda: host.pack(u4, F32), "f16 or bf16"),
        (lambda: host.pack(small), "all or 128 of k"),
        (lambda: host.pack(wide, F16), "beyond its range"),
        (lambda: host.quantize(weights(64, 32), "int4"), "known: u4b8, u4"),
        (lambda: host.quantize(weights(64, 32), "nvfp4", 32), "group_size"),
        (lambda: replace(packed, zeros=None), "u4 weights need zeros"),
        (lambda: replace(packed, global_scales=np.ones(1, np.float32)), "no global_scales"),
        (lambda: replace(packed, zeros=packed.zeros.astype(np.float32)), "zeros must be float16"),
        (lambda: replace(packed, scales=packed.scales[:, :1]), "scales must be"),
        (lambda: replace(packed, format="u8"), "codes must be"),
        (lambda: host.join(parts._replace(zeros=None)), "u4 weights need zeros"),
        (lambda: host.join(parts._replace(format="u4b8")), "no zeros"),
        (
            lambda: host.join(nv._replace(global_scales=nv.global_scales[:1])),
            r"one for each weight, 2 \(got 1",
        ),
        (lambda: read_number(77), "format number 77.*pack it again"),
    ):
        with pytest.raises(WeightError, match=words):
            call()
