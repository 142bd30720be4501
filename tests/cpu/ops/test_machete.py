"""The documented Machete operators on CPU tensors: results, schedules, and every refusal."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import billhook  # noqa: E402
from billhook.config import parse_types  # noqa: E402
from billhook.dtypes import ALL  # noqa: E402
from billhook.errors import ArchError, InputError, UnsupportedError, WeightError  # noqa: E402
from billhook.formats.blocks import count_groups  # noqa: E402
from billhook.ops import machete  # noqa: E402
from billhook.ops.machete_kernels import find_schedule  # noqa: E402

WEIGHTS = {"u4b8": "uint4b8", "u4": "uint4", "u8b128": "uint8b128", "u8": "uint8"}
SCHEDULE = "128x128_2x1x1_TmaMI__TmaCoop_streamK"
WHOLE = "128x128_2x1x1_TmaMI__TmaCoop_PersistentScheduler"
ALONE = "128x64_2x1x1_KernelTmaWarpSpecializedPingpong_TmaWarpSpecialized_PersistentScheduler"


class Operands:
    """Random operands of `machete_mm`, with their product in float64."""

    def __init__(self, name: str, dtype: Any, group: int) -> None:
        m, n, k = 5, 80, 144
        weight, generator = ALL[name], torch.Generator().manual_seed(7)
        codes = torch.randint(0, 2**weight.bits, (k, n), generator=generator)
        groups = count_groups(k, group)
        self.a = torch.randn(m, k, generator=generator).to(dtype)
        self.scales = (torch.rand(groups, n, generator=generator) / 8 + 0.01).to(dtype)
        self.zeros, points = None, torch.full((groups, n), weight.bias)
        if weight.zero_point:
            points = torch.randint(0, 2**weight.bits, (groups, n), generator=generator)
            self.zeros = -1 * self.scales * points.to(dtype)
        each = 32 // weight.bits
        words = codes.reshape(k // each, each, n) << (torch.arange(each) * weight.bits)[:, None]
        self.words = words.sum(1).to(torch.int64).numpy().astype(np.uint32).view(np.int32)
        of_row = torch.arange(k) // (k if group == -1 else group)
        self.values = values = (codes - points[of_row]).double() * self.scales[of_row].double()
        self.exact, self.magnitude = self.a.double() @ values, self.a.double().abs() @ values.abs()

    def prepack(self, name: str) -> Any:
        return billhook.machete_prepack_B(torch.from_numpy(self.words), self.a.dtype, name, self.a.dtype)

    def mm(self, b: Any, name: str, group: int | None, **others: Any) -> Any:
        given = {"b_group_scales": self.scales, "b_group_zeros": self.zeros, "b_group_size": group, **others}
        return billhook.machete_mm(self.a, b, name, **given)


@pytest.mark.parametrize("group", [-1, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_multiplies_what_checkpoints_hold(name: str, dtype: Any, group: int) -> None:
    one = Operands(name, dtype, group)
    for spelling in (name, WEIGHTS[name], ALL[name]):
        out = one.mm(one.prepack(name), spelling, group, schedule=SCHEDULE)
    unit = torch.finfo(dtype).eps / 2
    # Zero points that come as rounded products are off by half a code where the type is coarse.
    points = 2 ** ALL[name].bits * unit if one.zeros is not None else 0
    slack = one.a.double().abs().sum(1, keepdim=True) * one.scales.double().max() * points
    assert out.dtype == dtype
    assert bool(((out.double() - one.exact).abs() <= 4 * unit * one.magnitude + slack).all())


def test_words_in_column_major_order_are_packed_alike() -> None:
    one = Operands("u4b8", torch.float16, 32)
    rows = torch.from_numpy(one.words)
    columns = rows.t().contiguous().t()
    packed = [
        billhook.machete_prepack_B(words, torch.float16, "u4b8", torch.float16) for words in (rows, columns)
    ]
    assert torch.equal(*packed)


def test_a_group_size_of_none_is_one_group() -> None:
    one = Operands("u4b8", torch.float16, -1)
    b = one.prepack("u4b8")
    assert torch.equal(one.mm(b, "u4b8", None), one.mm(b, "u4b8", -1))


def test_scales_are_packed_once_and_again_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    one, count = Operands("u4", torch.bfloat16, 64), 0
    original = machete._pack_groups

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(machete, "_pack_groups", counted)
    b = one.prepack("u4")
    first = one.mm(b, "u4", 64)
    assert torch.equal(first, one.mm(b, "u4", 64))
    assert count == 1
    one.scales *= 2
    assert one.zeros is not None
    one.zeros *= 2
    assert torch.equal(2 * first, one.mm(b, "u4", 64))
    assert count == 2
    one.zeros = one.zeros.clone()
    one.mm(b, "u4", 64)
    assert count == 3


def test_codes_that_moved_are_read_where_they_are() -> None:
    one, other = Operands("u4b8", torch.float16, 64), Operands("u4b8", torch.float16, 64)
    other.words = one.words ^ 0x11111111
    b, moved = one.prepack("u4b8"), other.prepack("u4b8")
    one.mm(b, "u4b8", 64)
    want = one.mm(moved, "u4b8", 64)
    b.data = moved.clone()
    assert torch.equal(one.mm(b, "u4b8", 64), want)


def test_what_was_packed_lives_as_long_as_the_codes() -> None:
    one = Operands("u4b8", torch.float16, 64)
    b = one.prepack("u4b8")
    one.mm(b, "u4b8", 64)
    made = weakref.ref(machete._made[b].weight)
    del b
    gc.collect()
    assert made() is None


def test_every_documented_type_has_every_documented_schedule() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for name, spelling in WEIGHTS.items():
            zeros = dtype if ALL[name].zero_point else None
            found = billhook.machete_supported_schedules(dtype, spelling, dtype, zeros, out_type=dtype)
            assert len([one for one in found if one.endswith("_TmaMI__TmaCoop_streamK")]) == 9
            assert found[0] == SCHEDULE  # the documented ones come first
            assert WHOLE in found and ALONE in found
            assert len(found) == 28  # but pingpong of 128 x 128, 128 x 256, 256 x 64 and 256 x 128: two each


@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_activations_of_8_bits_have_float32_scales_of_tokens_and_channels(dtype: Any, out: Any) -> None:
    one, f32 = Operands("u4b8", torch.float16, -1), torch.float32
    found = billhook.machete_supported_schedules(dtype, "uint4b8", None, None, f32, f32, out)
    assert len(found) == 28
    codes, tokens = billhook.quantize_activations(one.a, dtype)
    b = billhook.machete_prepack_B(torch.from_numpy(one.words), dtype, "uint4b8", None)
    assert torch.equal(b, one.prepack("u4b8"))
    channels = one.scales[0].float() * 1.001  # no number of 16 bits
    exact = (codes.double() * tokens.double()) @ (one.values / one.scales.double() * channels.double())
    for each in (channels, channels[None]):
        got = billhook.machete_mm(
            codes, b, "uint4b8", out, b_channel_scales=each, a_token_scales=tokens, schedule=found[0]
        )
        assert got.dtype == out
        unit = torch.finfo(out).eps / 2
        assert bool(((got.double() - exact).abs() <= unit * exact.abs() + 1e-5 * one.magnitude).all())
    for wrong in ({"b_channel_scales": None}, {"a_token_scales": None}, {"b_group_scales": channels[None]}):
        given = {"b_channel_scales": channels, "a_token_scales": tokens, **wrong}
        with pytest.raises(UnsupportedError, match="not implemented for"):
            billhook.machete_mm(codes, b, "uint4b8", out, **given)
    with pytest.raises((UnsupportedError, WeightError), match="64"):
        billhook.machete_mm(
            codes, b, "uint4b8", out, b_group_size=64, b_channel_scales=channels, a_token_scales=tokens
        )


@pytest.mark.parametrize("group", [-1, 128])
@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_activations_of_8_bits_may_have_scales_of_groups_too(dtype: Any, out: Any, group: int) -> None:
    one, f32 = Operands("u4b8", out, group), torch.float32
    found = billhook.machete_supported_schedules(dtype, "uint4b8", out, None, f32, f32, out)
    codes, tokens = billhook.quantize_activations(one.a, dtype)
    b = billhook.machete_prepack_B(torch.from_numpy(one.words), dtype, "uint4b8", out)
    channels = torch.rand(one.scales.shape[1], generator=torch.Generator().manual_seed(8)) + 0.5
    given = {"b_group_scales": one.scales, "b_group_size": group}
    given |= {"b_channel_scales": channels, "a_token_scales": tokens}
    got = billhook.machete_mm(codes, b, "uint4b8", out, **given, schedule=found[2])  # 128 x 64
    exact = (codes.double() * tokens.double()) @ (one.values * channels.double())
    unit = torch.finfo(out).eps / 2
    assert bool(((got.double() - exact).abs() <= unit * exact.abs() + 1e-5 * one.magnitude).all())
    if group == 128:
        with pytest.raises(
            UnsupportedError, match=r"96 tokens at most.* with group_size 128 there are: 128x64_"
        ):
            billhook.machete_mm(codes, b, "uint4b8", out, **given, schedule=SCHEDULE)


def test_types_without_kernels_have_no_schedules() -> None:
    supported = billhook.machete_supported_schedules
    assert supported(torch.float16, "uint4b8", None) == []
    assert supported(torch.float16, "uint4b8", torch.float16, torch.float16) == []
    assert supported(torch.float16, "uint4", torch.float16) == []
    assert supported(torch.float16, "uint4b8", torch.bfloat16) == []
    assert supported(torch.float16, "uint4b8", torch.float16, out_type=torch.bfloat16) == []
    f32 = torch.float32
    assert supported(torch.int8, "uint4b8", torch.float16, None, f32, f32, torch.bfloat16) == []
    assert supported(torch.int8, "uint4b8", None, None, f32, None, torch.float16) == []
    assert supported(torch.int8, "uint8b128", None, None, f32, f32, torch.float16) == []
    assert supported(torch.float16, "uint4b8", torch.float16, None, f32, f32) == []


def test_types_without_kernels_are_refused_with_those_that_have_them() -> None:
    one = Operands("u4b8", torch.float16, 64)
    b = one.prepack("u4b8")
    known = "a_type=bf16, b_type=u8, with_group_scale_type=bf16, with_group_zeropoint_type=bf16"
    for wrong in (
        {"out_type": torch.bfloat16},
        {"b_group_scales": None},
        {"b_group_zeros": one.scales},
        {"b_channel_scales": torch.ones(80)},
        {"a_token_scales": torch.ones(5)},
    ):
        with pytest.raises(UnsupportedError, match="not implemented for a_type=f16") as error:
            one.mm(b, "u4b8", 64, **wrong)
        assert known in str(error.value)
    with pytest.raises(UnsupportedError, match="weights of type float6; implemented: uint4 or u4, uint4b8"):
        one.mm(b, "float6", 64)
    with pytest.raises(UnsupportedError, match=r"takes torch\.float64"):
        one.mm(b, "u4b8", 64, out_type=torch.float64)
    with pytest.raises(
        UnsupportedError, match=r"multiplies u4b8 weights with torch\.bfloat16 scales"
    ) as error:
        billhook.machete_prepack_B(torch.from_numpy(one.words), torch.float16, "u4b8", torch.bfloat16)
    assert known in str(error.value)


def test_schedules_that_do_not_exist_are_refused_with_those_that_do() -> None:
    one = Operands("u4b8", torch.float16, 64)
    b = one.prepack("u4b8")
    with pytest.raises(
        UnsupportedError, match=r"'64x64' does not exist; for .*group_size 64 there are: .*"
    ) as error:
        one.mm(b, "u4b8", 64, schedule="64x64")
    assert SCHEDULE in str(error.value)
    crossed = SCHEDULE.replace("TmaCoop", "TmaWarpSpecialized")
    with pytest.raises(UnsupportedError, match="has no kernel here: the epilogue schedule") as error:
        one.mm(b, "u4b8", 64, schedule=crossed)
    assert f": {SCHEDULE}, " in str(error.value)
    with pytest.raises(UnsupportedError, match="at most 96 with tile_n 128, computed alone"):
        one.mm(b, "u4b8", 64, schedule=ALONE.replace("128x64", "128x112"))


def test_a_schedule_chooses_the_kernel_and_whether_tiles_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    types, asked = parse_types("f16_u4b8_f16_f16"), []

    def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return gemm(*arguments, **options)

    gemm = machete.gemm
    monkeypatch.setattr(machete, "gemm", noted)
    one = Operands("u4b8", torch.float16, 64)
    b = one.prepack("u4b8")
    for schedule in (None, SCHEDULE, WHOLE, ALONE, ALONE.replace("128x64_2", "192x48_1")):
        one.mm(b, "u4b8", 64, schedule=schedule)
    assert [options["split_k"] for options in asked] == [True, True, False, False, False]
    kernels = {name: find_schedule(name, types, 64)[0].tile for name in (SCHEDULE, WHOLE, ALONE)}
    assert kernels[SCHEDULE] == kernels[WHOLE]
    assert [kernels[name].pingpong for name in (WHOLE, ALONE)] == [False, True]


def test_a_gpu_without_wgmma_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machete, "capability", lambda device: (8, 9))
    with FakeTensorMode():
        a, b = (torch.empty(4, 64, dtype=dtype, device="cuda") for dtype in (torch.float16, torch.int32))
        scales = torch.empty(1, 64, dtype=torch.float16, device="cuda")
        with pytest.raises(ArchError, match=r"need a GPU of 9\.0 \(got 8\.9\); billhook\.gemm serves others"):
            billhook.machete_mm(a, b, "uint4b8", b_group_scales=scales)


def test_scales_are_not_packed_while_a_stream_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machete, "capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode():
        a, scales = (torch.empty(rows, 64, dtype=torch.float16, device="cuda") for rows in (4, 1))
        b = torch.empty(1, 1, 4, 32, 4, dtype=torch.int32, device="cuda")
        with pytest.raises(InputError, match="call it once before the stream is captured"):
            billhook.machete_mm(a, b, "uint4b8", b_group_scales=scales)


def test_what_is_no_tensor_is_refused() -> None:
    one = Operands("u4b8", torch.float16, 64)
    weight = billhook.quantize_weight(torch.randn(144, 80, dtype=torch.float16), group_size=64)
    for b in (weight, None, one.words):
        with pytest.raises(WeightError, match=r"b_q_weight must be a torch\.Tensor \(got"):
            one.mm(b, "u4b8", 64)
    with pytest.raises(WeightError, match=r"b_group_scales must be a torch\.Tensor \(got list\)"):
        one.mm(one.prepack("u4b8"), "u4b8", 64, b_group_scales=[0.5])
    with pytest.raises(WeightError, match=r"b_q_weight must be a torch\.Tensor \(got ndarray\)"):
        billhook.machete_prepack_B(one.words, torch.float16, "u4b8", torch.float16)


def test_tensors_that_do_not_fit_are_refused() -> None:
    one = Operands("u4b8", torch.float16, 64)
    b = one.prepack("u4b8")
    with pytest.raises(WeightError, match="and n=0, as scales have"):
        one.mm(b, "u4b8", 64, b_group_scales=one.scales[0, 0])
    with pytest.raises(InputError, match=r"m at least 1 \(got \(0, 144\)\)"):
        billhook.machete_mm(one.a[:0], b, "u4b8", b_group_scales=one.scales, b_group_size=64)
    with pytest.raises(WeightError, match="machete_prepack_B"):
        one.mm(torch.from_numpy(one.words), "u4b8", 64)
    with pytest.raises(WeightError, match="for u8b128 weights of k=144, as a has, and n=80"):
        one.mm(b, "u8b128", 64)
    with pytest.raises(WeightError, match=r"b_group_scales must be \(5, 80\) for group_size 32"):
        one.mm(b, "u4b8", 32)
    with pytest.raises(WeightError, match="b_group_size must be None or one of"):
        one.mm(b, "u4b8", 48)
    with pytest.raises(WeightError, match="b_group_scales must be finite"):
        one.mm(b, "u4b8", 64, b_group_scales=one.scales * torch.nan)
    with pytest.raises(WeightError, match="int32"):
        billhook.machete_prepack_B(torch.zeros(18, 80), torch.float16, "u4b8", torch.float16)


def test_zeros_that_are_no_zero_points_are_refused() -> None:
    one = Operands("u4", torch.float16, 64)
    b = one.prepack("u4")
    assert one.zeros is not None
    for value in (-0.5, -16.0, 1.0, torch.nan):
        zeros = one.zeros.clone()
        zeros[1, 2] = one.scales[1, 2] * value
        with pytest.raises(
            WeightError, match=r"b_group_zeros\[1, 2\] = .* is not -scale times a zero point 0 to 15"
        ):
            one.mm(b, "u4", 64, b_group_zeros=zeros)


def test_a_zero_point_of_a_zero_scale_is_zero() -> None:
    one = Operands("u4", torch.float16, 64)
    assert one.zeros is not None
    one.scales[0, 0] = one.zeros[0, 0] = 0
    assert torch.isfinite(one.mm(one.prepack("u4"), "u4", 64)).all()
