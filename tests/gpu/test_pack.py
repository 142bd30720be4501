"""Packing on the GPU gives the host's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

import billhook  # noqa: E402
from billhook.checkpoint import open_checkpoint  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.formats.blocks import Block, count_groups  # noqa: E402
from billhook.formats.fp8 import BLOCK, TENSOR, quantize  # noqa: E402
from billhook.formats.host import quantize as quantize_any  # noqa: E402
from billhook.ops import PackedWeight, pack_quantized  # noqa: E402
from billhook.weights import FORMATS, PackedFormat  # noqa: E402

SHAPES = [(16, 16), (64, 64), (80, 144), (144, 80), (128, 128), (336, 208), (192, 1040), (2064, 320)]  # k, n
DATA = Path(__file__).parents[1] / "data/checkpoints"
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def same(got: PackedWeight, want: PackedWeight, what: str) -> None:
    """Fail unless two weights, one of them on the GPU, are the same to the bit."""
    assert got.device.type == "cuda", what
    mine, theirs = got.state_dict(), want.state_dict()
    assert mine.keys() == theirs.keys(), what
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype and mine[name].shape == tensor.shape, f"{what}: {name}"
        different = (bits(mine[name].cpu()) != bits(tensor)).nonzero()
        assert len(different) == 0, (
            f"{what}: {len(different)} of {name} differ, first at {different[0].tolist()}"
        )


def bits(tensor: Any) -> Any:
    return tensor.contiguous().view(torch.uint8)


def draw(held: PackedFormat, k: int, n: int, group: int, *, dtype: Any, experts: int = 0) -> dict[str, Any]:
    """Return random arguments of `pack_weight`, on the host."""
    head = (experts,) if experts else ()
    groups = (*head, count_groups(k, group), n)
    codes = torch.randint(0, 2**held.weight.bits, (*head, k, n), dtype=torch.uint8)
    if held.weight.name == "e4m3fn":
        codes[(codes & 0x7F) == 0x7F] = 0
    arguments: dict[str, Any] = {"codes": codes, "group_size": group, "format": held.name}
    if held.scale is None:
        arguments["scales"] = torch.rand(groups).to(dtype)
    else:
        arguments["scales"] = torch.randint(0, 127, groups, dtype=torch.uint8)
    if held.weight.zero_point:
        arguments["zeros"] = torch.randint(0, 2**held.weight.bits, groups, dtype=torch.uint8)
    if held.global_scale:
        arguments["global_scales"] = torch.rand(max(1, experts)) + 0.5
    if held.folded:
        arguments["channel_scales"] = torch.randn(*head, n)
    return arguments


def on_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: one.cuda() if isinstance(one, torch.Tensor) else one for name, one in arguments.items()}


def transposed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the same tensors, with n and then k contiguous in memory the other way round."""
    names = ("codes", "scales", "zeros")
    return arguments | {
        name: arguments[name].mT.contiguous().mT for name in names if arguments.get(name) is not None
    }


@pytest.mark.parametrize("experts", [0, 1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_shape_is_packed_as_on_the_host(name: str, experts: int) -> None:
    held = FORMATS[name]
    for k, n in SHAPES:
        for group in held.group_sizes:
            if held.scale and not held.folded and k % group:
                continue
            for dtype in (torch.float16, torch.bfloat16):
                arguments = draw(held, k, n, group, dtype=dtype, experts=experts)
                want = billhook.pack_weight(**arguments)
                for order, change in (("rows", lambda one: one), ("columns", transposed)):
                    got = billhook.pack_weight(**change(on_gpu(arguments)))
                    same(got, want, f"{name} k={k} n={n} group={group} {dtype} experts={experts} {order}")


def join(codes: Any, width: int) -> Any:
    """Put consecutive codes of the last axis into words, lowest bits first."""
    each = 32 // width
    fields = codes.reshape(*codes.shape[:-1], -1, each).numpy().astype(np.uint64)
    words = (fields << (np.arange(each, dtype=np.uint64) * np.uint64(width))).sum(-1)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32))


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("name", ["u4b8", "u4", "u8b128", "u8"])
def test_every_form_that_checkpoints_have_is_packed_as_on_the_host(name: str, experts: int) -> None:
    held = FORMATS[name]
    width = held.weight.bits
    for k, n in SHAPES:
        arguments = draw(held, k, n, -1, dtype=torch.float16, experts=experts)
        want, codes = billhook.pack_weight(**arguments), arguments["codes"]
        rows = join(codes.mT.contiguous(), width)
        forms = [("gptq", rows.mT.contiguous()), ("compressed_tensors", rows)]
        forms.append(("compressed_tensors", rows.view(torch.uint8)))
        if width == 4:
            eights = codes.reshape(*codes.shape[:-1], -1, 8)[..., AWQ_ORDER].reshape(codes.shape)
            forms.append(("awq", join(eights, 4)))
        for stored, words in forms:
            got = billhook.pack_weight(**on_gpu(arguments | {"codes": words, "stored": stored}))
            same(got, want, f"{name} k={k} n={n} experts={experts} {stored} {words.dtype}")


def test_tensors_may_lie_anywhere() -> None:
    arguments = on_gpu(draw(FORMATS["u4"], 80, 144, 32, dtype=torch.float16))
    want = billhook.pack_weight(
        **{key: one.cpu() if hasattr(one, "cpu") else one for key, one in arguments.items()}
    )
    for shift in (1, 3, 8):
        moved = {}
        for name in ("codes", "scales", "zeros"):
            flat = torch.cat([arguments[name].new_zeros(shift), arguments[name].reshape(-1)])
            moved[name] = flat[shift:].view(arguments[name].shape)
        same(billhook.pack_weight(**(arguments | moved)), want, f"shifted by {shift}")
    wide = {
        name: torch.cat([arguments[name]] * 2, dim=-1)[..., :144] for name in ("codes", "scales", "zeros")
    }
    same(billhook.pack_weight(**(arguments | wide)), want, "columns of a wider tensor")


def test_one_scale_for_all_columns_needs_no_copies() -> None:
    codes = torch.randint(0, 120, (192, 80), dtype=torch.uint8)
    scales = torch.rand(1, 1, dtype=torch.float16).expand(1, 80)
    want = billhook.pack_weight(codes, scales, -1, format="fp8")
    same(billhook.pack_weight(codes.cuda(), scales.cuda(), -1, format="fp8"), want, "expanded on the host")
    same(
        billhook.pack_weight(codes.cuda(), scales[:, :1].cuda().expand(1, 80), -1, format="fp8"),
        want,
        "expanded",
    )


@pytest.mark.parametrize("name", FORMATS)
def test_host_values_are_packed_as_on_the_host(name: str) -> None:
    for shape in ((320, 208), (3, 320, 208)):
        value = quantize_any(torch.randn(shape).numpy(), name)
        same(pack_quantized(value, "cuda"), pack_quantized(value), f"{name} {shape}")
    for block in (TENSOR, BLOCK, Block(128, 1)):
        fp8 = quantize(torch.randn(320, 208).numpy(), block)
        for dtype in (torch.float16, torch.bfloat16):
            same(pack_quantized(fp8, "cuda", dtype), pack_quantized(fp8, dtype=dtype), f"fp8 {block} {dtype}")


def test_a_layer_of_a_large_model_is_packed_right() -> None:
    arguments = on_gpu(draw(FORMATS["u4b8"], 8192, 28672, 128, dtype=torch.bfloat16))
    weight = billhook.pack_weight(**arguments)
    few = {"codes": arguments["codes"][:, -64:], "scales": arguments["scales"][:, -64:]}
    want = billhook.pack_weight(**{**arguments, **{name: one.cpu() for name, one in few.items()}})
    assert torch.equal(weight.codes[-1:].cpu(), want.codes)
    assert torch.equal(weight.scales[-1:].cpu(), want.scales)


def test_what_cannot_be_packed_is_refused() -> None:
    u4b8, u4, fp8, mx, nv = (
        on_gpu(draw(FORMATS[name], 64, 48, group, dtype=torch.float16))
        for name, group in (("u4b8", 32), ("u4", 32), ("fp8", -1), ("mxfp4", 32), ("nvfp4", 16))
    )

    def put(arguments: dict[str, Any], name: str, value: float) -> dict[str, Any]:
        changed = arguments[name].clone()
        changed.view(-1)[-1] = value
        return arguments | {name: changed}

    for arguments, words in (
        (put(u4b8, "codes", 16), r"0 to 15 \(got 16\)"),
        (put(u4, "codes", 255), r"0 to 15 \(got 255\)"),
        (put(fp8, "codes", 0x7F), "NaN"),
        (put(fp8, "codes", 0xFF), "NaN"),
        (put(u4b8, "scales", torch.nan), "finite"),
        (put(u4b8, "scales", torch.inf), "finite"),
        (put(fp8, "scales", -1), "negative"),
        (put(mx, "scales", 255), "NaN"),
        (put(nv, "scales", 0x7F), "NaN or negative"),
        (put(nv, "scales", 0x80), "NaN or negative"),
        (put(u4, "zeros", 16), "0 to 15"),
        (put(nv, "global_scales", 0), "positive"),
        (u4b8 | {"codes": u4b8["codes"].int()}, "uint8"),
        (u4b8 | {"codes": u4b8["codes"][:, :40], "scales": u4b8["scales"][:, :40]}, "multiples of 16"),
        (u4b8 | {"scales": u4b8["scales"][:1]}, r"\(2, 48\)"),
        (u4b8 | {"group_size": 48}, "group_size"),
        (u4b8 | {"zeros": u4["zeros"]}, "no zeros"),
        (u4 | {"zeros": None}, "need zeros"),
        (nv | {"global_scales": None}, "need global_scales"),
        (mx | {"dtype": torch.float16}, "multiplied by bf16"),
        (u4b8 | {"stored": "awq"}, "int32"),
        (u4b8 | {"scales": u4b8["scales"].float() * 1e30, "dtype": torch.float16}, "beyond its range"),
    ):
        with pytest.raises(WeightError, match=words):
            billhook.pack_weight(**arguments)


@pytest.mark.parametrize("name", sorted(one.name for one in DATA.iterdir() if one.is_dir()))
def test_the_words_of_checkpoints_are_packed_as_on_the_host(name: str) -> None:
    source = open_checkpoint(DATA / name)
    for module in source.modules:
        found = source.read(module)
        same(pack_quantized(found.parts, "cuda"), pack_quantized(found.value), f"{name} {module}")


@pytest.mark.parametrize("name", ["u4b8", "u4", "u8b128", "u8"])
def test_act_order_is_packed_as_on_the_host(name: str) -> None:
    held = FORMATS[name]
    for k, n in SHAPES:
        arguments = draw(held, k, n, -1, dtype=torch.float16)
        rows = join(arguments["codes"].mT.contiguous(), held.weight.bits)
        arguments["input_order"] = torch.randperm(k)
        want = billhook.pack_weight(**arguments)
        for stored, words in (
            ("codes", arguments["codes"]),
            ("gptq", rows.mT.contiguous()),
            ("compressed_tensors", rows),
        ):
            got = billhook.pack_weight(**on_gpu(arguments | {"codes": words, "stored": stored}))
            same(got, want, f"{name} k={k} n={n} {stored}")


def test_layers_are_folded_where_they_are() -> None:
    arguments = draw(FORMATS["u4b8"], 336, 208, 128, dtype=torch.float16)
    rows, scales = join(arguments["codes"].mT.contiguous(), 4), arguments["scales"]
    folded, channels = billhook.fold_scales(scales)
    want = billhook.pack_weight(arguments["codes"], folded, 128, format="w4a8", channel_scales=channels)
    gptq = billhook.import_gptq(rows.mT.contiguous().cuda(), scales.cuda(), group_size=128, format="w4a8")
    same(gptq, want, "gptq")
    packed = billhook.import_compressed_tensors(
        rows.cuda(), scales.mT.contiguous().cuda(), k=336, group_size=128, format="w4a8"
    )
    same(packed, want, "compressed-tensors")


def test_layers_are_imported_where_they_are() -> None:
    arguments = draw(FORMATS["u4"], 336, 208, 128, dtype=torch.float16)
    rows = join(arguments["codes"].mT.contiguous(), 4)
    want = billhook.pack_weight(**arguments)
    zeros = join(arguments["zeros"], 4)
    gptq = billhook.import_gptq(
        rows.mT.contiguous().cuda(), arguments["scales"].cuda(), zeros.cuda(),
        group_size=128, version=2, format="u4",
    )  # fmt: skip
    same(gptq, want, "gptq")
    packed = billhook.import_compressed_tensors(
        rows.cuda(), arguments["scales"].mT.contiguous().cuda(), zeros.mT.contiguous().cuda(),
        k=336, group_size=128, format="u4",
    )  # fmt: skip
    same(packed, want, "compressed-tensors")
