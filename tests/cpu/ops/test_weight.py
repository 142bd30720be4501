"""Packed weights as torch tensors: the host's packing, checkpoints, state dicts, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import billhook  # noqa: E402
from billhook.dtypes import BF16, U4B8  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.formats import host, pack  # noqa: E402
from billhook.formats.blocks import count_groups  # noqa: E402
from billhook.ops import PackedWeight, from_arrays, stack_weights, to_arrays, unpack_weight  # noqa: E402
from billhook.ops.drawn import draw  # noqa: E402
from billhook.ops.tensors import from_numpy, to_numpy  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

SIZES = st.integers(1, 12).map(lambda count: 16 * count)


@settings(max_examples=40, deadline=None)
@given(
    k=SIZES,
    n=SIZES,
    group=st.sampled_from([-1, 32, 64, 128]),
    experts=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_torch_packs_as_the_host_does(*, k: int, n: int, group: int, experts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head = (experts,) if experts else ()
    codes = rng.integers(0, 16, (*head, k, n), dtype=np.uint8)
    scales = rng.standard_normal((*head, count_groups(k, group), n)).astype(np.float16)
    weight = billhook.pack_weight(torch.from_numpy(codes), torch.from_numpy(scales), group)
    assert (to_numpy(weight.codes).view(np.uint32) == pack.pack_codes(codes, U4B8)).all()
    assert (to_numpy(weight.scales) == pack.pack_scales(scales, k, group)).all()
    back = unpack_weight(weight)
    assert (back.codes == codes).all() and (back.scales == scales).all()


def test_quantizing_a_tensor_is_quantizing_its_numbers() -> None:
    values = torch.randn(3, 80, 48, dtype=torch.bfloat16)
    want = host.quantize(values.float().numpy(), "u4b8", 32, BF16)
    got = unpack_weight(billhook.quantize_weight(values, 32))
    assert (got.codes == want.codes).all()
    assert (got.scales == want.scales).all()
    with pytest.raises(WeightError, match="name one with dtype="):
        billhook.quantize_weight(values.float(), 32)
    assert billhook.quantize_weight(values.float(), 32, torch.float16).dtype == torch.float16


def join(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Join neighbours of a row into int32, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    words = (rows.reshape(rows.shape[0], -1, 32 // bits).long() << shifts).sum(-1)
    return (words - ((words >> 31) << 32)).int()


@pytest.mark.parametrize("name", ["u4b8", "u4", "u8b128", "u8"])
def test_gptq_and_compressed_tensors_layers_are_packed_alike(name: str) -> None:
    bits, bias = FORMATS[name].weight.bits, FORMATS[name].weight.bias
    codes = torch.randint(0, 2**bits, (64, 32), dtype=torch.uint8)
    scales = torch.rand(2, 32, dtype=torch.float16)
    zeros = None if bias else torch.randint(1, 2**bits, (2, 32), dtype=torch.uint8)
    want = billhook.pack_weight(codes, scales, 32, format=name, zeros=zeros)
    packed = None if zeros is None else join(zeros, bits).t()
    stored = join(torch.full((2, 32), bias - 1) if zeros is None else zeros - 1, bits)
    qweight, words = join(codes.t(), bits).t(), join(codes.t(), bits)
    gptq = billhook.import_gptq(qweight, scales, stored, group_size=32, format=name)
    other = billhook.import_compressed_tensors(words, scales.t(), packed, k=64, group_size=32, format=name)
    for got in (gptq, other):
        assert got.format == name and got.dtype == torch.float16
        for mine, theirs in zip(got.state_dict().values(), want.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
    converted = billhook.import_gptq(
        qweight, scales, stored, group_size=32, dtype=torch.bfloat16, format=name
    )
    assert converted.dtype == torch.bfloat16


def test_layers_of_checkpoints_are_folded_on_the_way() -> None:
    codes, scales = torch.randint(0, 16, (256, 32), dtype=torch.uint8), torch.randn(2, 32).half()
    folded, channels = billhook.fold_scales(scales)
    want = billhook.pack_weight(codes, folded, 128, format="w4a8", channel_scales=channels)
    assert (want.dtypes, want.outputs) == ((torch.float8_e4m3fn,), (torch.float16, torch.bfloat16))
    words = join(codes.t(), 4)
    for got in (
        billhook.import_gptq(words.t(), scales, group_size=128, format="w4a8"),
        billhook.import_compressed_tensors(words, scales.t(), k=256, group_size=128, format="w4a8"),
    ):
        for mine, theirs in zip(got.state_dict().values(), want.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
    with pytest.raises(WeightError, match=r"group_size 128 .got u4b8, group_size 64"):
        billhook.import_compressed_tensors(
            words, torch.ones(32, 4).half(), k=256, group_size=64, format="w4a8"
        )
    with pytest.raises(WeightError, match="need channel_scales"):
        billhook.pack_weight(codes, folded, 128, format="w4a8")


def test_importing_act_order_is_refused_in_words() -> None:
    qweight, scales = torch.zeros(8, 16, dtype=torch.int32), torch.ones(2, 16, dtype=torch.float16)
    g_idx = torch.arange(64, dtype=torch.int32) // 32
    assert billhook.import_gptq(qweight, scales, g_idx=g_idx, group_size=32).k == 64
    g_idx[[3, 40]] = g_idx[[40, 3]]
    with pytest.raises(WeightError, match=r"act-order.*billhook\.load.*got 1 at \[3\]"):
        billhook.import_gptq(qweight, scales, g_idx=g_idx, group_size=32)


def test_a_weight_survives_a_state_dict() -> None:
    weight = billhook.quantize_weight(torch.randn(2, 64, 48), 32, torch.bfloat16)
    tensors = weight.state_dict("layer.")
    back = PackedWeight.from_state_dict(tensors, "layer.")
    assert (back.n, back.k, back.group_size, back.num_experts) == (48, 64, 32, 2)
    assert torch.equal(back.codes, weight.codes) and torch.equal(back.scales, weight.scales)
    with pytest.raises(WeightError, match="lacks codes, scales, meta"):
        PackedWeight.from_state_dict(tensors, "other.")
    tensors["layer.meta"] = torch.tensor([99, 48, 64, 32, 2])
    with pytest.raises(WeightError, match="pack it again"):
        PackedWeight.from_state_dict(tensors, "layer.")


def test_weights_stored_before_there_were_other_formats_load() -> None:
    weight = billhook.quantize_weight(torch.randn(64, 48), 32, torch.bfloat16)
    tensors = {"codes": weight.codes, "scales": weight.scales, "meta": torch.tensor([1, 48, 64, 32, 0])}
    back = PackedWeight.from_state_dict(tensors)
    assert back.format == "u4b8" and torch.equal(back.codes, weight.codes)
    assert weight.state_dict().keys() == tensors.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_survives_a_state_dict_a_copy_and_a_stack(name: str) -> None:
    held = FORMATS[name]
    experts = [
        billhook.quantize_weight(torch.randn(128, 48), dtype=torch.bfloat16, format=name) for _ in range(3)
    ]
    weight = stack_weights(experts)
    arrays = to_arrays(weight)
    for back in (
        PackedWeight.from_state_dict(weight.state_dict("a.b."), "a.b."),
        PackedWeight.from_state_dict({key: from_numpy(one) for key, one in arrays.tensors().items()}),
        weight.clone(),
        from_arrays(arrays),
    ):
        assert (back.format, back.n, back.k, back.num_experts) == (name, 48, 128, 3)
        assert (back.weight, back.scale) == (held.weight, held.scale or BF16)
        assert back.dtype == torch.bfloat16 in back.outputs
        assert back.nbytes == weight.nbytes == sum(array.nbytes for array in arrays.tensors().values()) - 40
        for mine, theirs in zip(back.state_dict().values(), weight.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
    values = host.dequantize(unpack_weight(weight))
    for expert, one in enumerate(experts):
        assert (values[expert] == host.dequantize(unpack_weight(one))).all()


@pytest.mark.parametrize("name", FORMATS)
def test_drawn_weights_are_exact_and_hold_every_code(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    held = FORMATS[name]
    drawn = draw(held, 96, 80, held.group_sizes[0], dtype=torch.float16, generator=generator)
    columns = torch.tensor([3, 0, 79])
    exact = host.dequantize(unpack_weight(drawn.pack()), np.float64)[:, columns]
    assert (drawn.exact(columns).numpy() == exact).all()
    numbers = 2**held.weight.bits - (2 if name in ("fp8", "mxfp8") else 0)  # less two NaN
    assert len(drawn.codes.unique()) == numbers


def test_experts_that_differ_are_refused() -> None:
    one, other = (billhook.quantize_weight(torch.randn(64, n), 32, torch.float16) for n in (48, 64))
    with pytest.raises(WeightError, match=r"got u4b8 \[k=64, n=64\].* beside u4b8 \[k=64, n=48\]"):
        stack_weights([one, other])
    with pytest.raises(WeightError, match="at least one expert"):
        stack_weights([])


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_packed_from_every_form_that_checkpoints_have(bits: int) -> None:
    name = "u4b8" if bits == 4 else "u8b128"
    codes = torch.randint(0, 2**bits, (64, 48), dtype=torch.uint8)
    scales = torch.rand(2, 48, dtype=torch.float16)
    want = billhook.pack_weight(codes, scales, 32, format=name)
    rows = codes.mT.contiguous()
    held = rows[:, 0::2] | rows[:, 1::2] << 4 if bits == 4 else rows
    words = held.contiguous().view(torch.int32)
    for stored, form in (
        (rows.mT, "codes"),
        (words, "compressed_tensors"),
        (held, "compressed_tensors"),
        (words.mT, "gptq"),
        (words.mT.contiguous(), "gptq"),
    ):
        got = billhook.pack_weight(stored, scales.mT.contiguous().mT, 32, format=name, stored=form)
        assert torch.equal(got.codes, want.codes) and torch.equal(got.scales, want.scales)
    with pytest.raises(WeightError, match="stored as one of gptq, awq, compressed_tensors"):
        billhook.pack_weight(words, scales, 32, stored="marlin")


def test_float8_tensors_are_taken_as_codes() -> None:
    weight = torch.randn(64, 48).to(torch.float8_e4m3fn)
    scales = torch.rand(1, 48)
    packed = billhook.pack_weight(weight, scales, -1, format="fp8", dtype=torch.float16)
    assert packed.dtype == torch.float16
    want = weight.double() * scales.half().double()
    assert (host.dequantize(unpack_weight(packed), np.float64) == want.numpy()).all()
    with pytest.raises(WeightError, match="must not be NaN"):
        billhook.pack_weight(weight.fill_(torch.nan), scales, -1, format="fp8")


def test_copies_have_memory_of_their_own() -> None:
    weight = billhook.quantize_weight(torch.randn(64, 48), 32, torch.float16)
    copy = weight.clone()
    assert copy.codes.data_ptr() != weight.codes.data_ptr()
    assert weight.to("cpu") is weight
    assert weight.to("meta").device.type == "meta"


def test_what_is_no_packed_weight_is_refused() -> None:
    weight = billhook.quantize_weight(torch.randn(64, 48), 32, torch.float16)
    for change, words in (
        ({"format": "marlin-24"}, "no kernel reads weights of format 'marlin-24'; known: u4b8"),
        ({"n": 128}, "codes must be"),
        ({"group_size": 64}, "scales must be"),
        ({"num_experts": 2}, "codes must be"),
        ({"codes": weight.codes.float()}, "torch.int32"),
        ({"codes": weight.codes.transpose(2, 4).contiguous().transpose(2, 4)}, "contiguous"),
        ({"scales": weight.scales.float()}, "float16 or torch.bfloat16"),
    ):
        with pytest.raises(WeightError, match=words):
            replace(weight, **change)


def test_what_cannot_be_packed_is_refused() -> None:
    codes, scales = torch.zeros(64, 48, dtype=torch.uint8), torch.ones(2, 48, dtype=torch.float16)
    for args, words in (
        ((codes.int(), scales, 32), "uint8"),
        ((codes[:, :40], scales[:, :40], 32), "multiples of 16"),
        ((codes + 16, scales, 32), "0 to 15"),
        ((codes, scales[:1], 32), r"\(2, 48\)"),
        ((codes, scales.int(), 32), "f16, bf16 or f32"),
        ((codes, scales, 48), "group_size 128 or 64 or 32 or -1"),
        ((codes, scales * torch.nan, 32), "finite"),
        ((codes[:0], scales[:0], 32), "multiples of 16"),
    ):
        with pytest.raises(WeightError, match=words):
            billhook.pack_weight(*args)


def test_arrays_and_tensors_share_memory_bfloat16_too() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        tensor = torch.zeros(4, 4).to(dtype)
        array = to_numpy(tensor)
        array[1, 2] = 3
        assert tensor[1, 2] == 3
        assert from_numpy(array).data_ptr() == tensor.data_ptr()
        assert from_numpy(array).dtype == dtype
