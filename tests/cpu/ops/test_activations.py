"""8-bit activations on CPU tensors: quantizing, both operators, and every refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import billhook  # noqa: E402
from billhook.dtypes import E4M3FN, S8, DType  # noqa: E402
from billhook.errors import UnsupportedError, WeightError  # noqa: E402
from billhook.formats import activations as oracle  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.packed import find_format  # noqa: E402
from billhook.ops import PackedWeight, operators, stack_weights  # noqa: E402
from billhook.ops.drawn import Drawn, draw  # noqa: E402
from billhook.ops.tensors import ELEMENTS  # noqa: E402

DTYPES = {torch.float8_e4m3fn: E4M3FN, torch.int8: S8}
each_type = pytest.mark.parametrize("dtype", DTYPES)
K, N = 96, 48


def drawn(
    k: int = K, n: int = N, *, group: int = -1, out: Any = torch.bfloat16, name: str = "u4b8", seed: int = 0
) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    return draw(find_format(name), k, n, group, dtype=out, generator=generator)


def exact(one: Drawn) -> np.ndarray:
    return one.exact(torch.arange(one.codes.shape[1])).numpy()


def numbers(codes: Any, scales: Any) -> np.ndarray:
    """Return quantized activations in float64."""
    return (codes.double() * scales.double().view(-1, 1)).numpy()


def check(out: Any, ref: reference.Reference, k: int, element: DType) -> None:
    bound = reference.error_bound(k, -1, ELEMENTS[out.dtype], rounded_weights=False, activations=element)
    error = np.abs(out.double().numpy() - ref.value)
    assert (error <= bound.allowed(ref.value, ref.magnitude, ref.activations)).all()


@each_type
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 5), scale=st.floats(2.0**-130, 2.0**100))
def test_a_static_scale_gives_the_numbers_of_the_host(
    dtype: Any, seed: int, tokens: int, scale: float
) -> None:
    x = torch.randn(tokens, 129, generator=torch.Generator().manual_seed(seed)) * 200 * scale
    codes, scales = billhook.quantize_activations(x, dtype, scale)
    right = oracle.quantize_static(x.numpy(), scale, DTYPES[dtype])
    got = codes.view(torch.uint8 if dtype == torch.float8_e4m3fn else torch.int8).numpy()
    assert np.array_equal(got, right.codes.view(got.dtype))
    assert np.array_equal(scales.numpy(), np.broadcast_to(right.scales, (tokens, 1)))


@each_type
def test_a_static_scale_may_be_a_tensor(dtype: Any) -> None:
    x = torch.randn(3, K)
    want, got = (billhook.quantize_activations(x, dtype, scale) for scale in (0.02, torch.tensor([0.02])))
    assert torch.equal(got[0].float(), want[0].float()) and torch.equal(got[1], want[1])
    with pytest.raises(WeightError, match=r"one number on cpu \(got \(2,\)"):
        billhook.quantize_activations(x, dtype, torch.ones(2))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 1e39, 1e-60])
def test_a_static_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(WeightError, match="static scale must be positive"):
        billhook.quantize_activations(torch.ones(2, 16), scale=scale)


@each_type
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), tokens=st.integers(0, 5), exponent=st.integers(-140, 120))
def test_quantizing_gives_the_numbers_of_the_host(dtype: Any, seed: int, tokens: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 257, generator=generator) * 2.0**exponent
    if tokens > 1:
        x[0] = 0
        x[1] = (torch.arange(257) - 128) / 16.0  # ties, and the largest
    codes, scales = billhook.quantize_activations(x, dtype)
    assert (codes.dtype, scales.dtype, scales.shape) == (dtype, torch.float32, (tokens, 1))
    want = oracle.quantize_dynamic(x.numpy(), DTYPES[dtype])
    got = codes.numpy() if dtype == torch.int8 else codes.view(torch.uint8).numpy()
    assert np.array_equal(scales.numpy(), want.scales)
    assert np.array_equal(got, want.codes)


@each_type
def test_what_is_not_finite_stays_in_its_own_row(dtype: Any) -> None:
    one = drawn()
    x = torch.randn(3, K)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    codes, scales = billhook.quantize_activations(x, dtype)
    out = billhook.gemm(codes, one.pack(), token_scales=scales)
    assert not out[:2].isfinite().any()
    assert out[2].isfinite().all()


@each_type
@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16])
@settings(max_examples=10, deadline=None)
@given(m=st.integers(0, 9), k=st.integers(1, 9), n=st.integers(1, 9), extras=st.booleans())
def test_gemm_is_within_the_bound(*, dtype: Any, out: Any, m: int, k: int, n: int, extras: bool) -> None:
    one = drawn(16 * k, 16 * n, out=out)
    codes, scales = billhook.quantize_activations(torch.randn(m, 16 * k), dtype)
    bias = torch.randn(16 * n, dtype=out) if extras else None
    channels = torch.rand(16 * n) + 0.5 if extras else None
    got = billhook.gemm(codes, one.pack(), bias, token_scales=scales, channel_scales=channels)
    assert (got.dtype, got.shape) == (out, (m, 16 * n))
    right = exact(one) * (1 if channels is None else channels.double().numpy())
    ref = reference.gemm(numbers(codes, scales), right, None if bias is None else bias.double())
    check(got, ref, 16 * k, DTYPES[dtype])
    into = torch.full_like(got, torch.nan)
    billhook.gemm(codes, one.pack(), bias, token_scales=scales[:, 0], channel_scales=channels, out=into)
    assert torch.equal(into, got)


@each_type
def test_one_scale_may_serve_all_tokens(dtype: Any) -> None:
    weight, (codes, _) = drawn().pack(), billhook.quantize_activations(torch.randn(5, K), dtype)
    one, each = torch.tensor([0.25]), torch.full((5, 1), 0.25)
    assert torch.equal(
        billhook.gemm(codes, weight, token_scales=one), billhook.gemm(codes, weight, token_scales=each)
    )


@each_type
def test_experts_take_the_scale_of_the_row_s_token(dtype: Any) -> None:
    parts = [drawn(seed=expert) for expert in range(3)]
    weight, right = stack_weights([one.pack() for one in parts]), np.stack([exact(one) for one in parts])
    codes, scales = billhook.quantize_activations(torch.randn(7, K), dtype)
    ids, factors = torch.randint(-1, 3, (7, 2)), torch.rand(7, 2)
    bias = torch.randn(3, N, dtype=torch.bfloat16)
    routing = billhook.route(ids, 3, billhook.moe_block_m(weight, 7, 2, dtype))
    got = billhook.moe_gemm(codes, weight, routing, factors, bias, token_scales=scales)
    check(
        got, reference.moe_gemm(numbers(codes, scales), right, ids, factors, bias.double()), K, DTYPES[dtype]
    )
    assert torch.equal(billhook.moe_gemm(codes, weight, ids, factors, bias, token_scales=scales), got)
    rows, row_scales = (
        codes.view(torch.uint8).repeat_interleave(2, 0).view(dtype),
        scales.repeat_interleave(2),
    )
    assert torch.equal(billhook.moe_gemm(rows, weight, routing, factors, bias, token_scales=row_scales), got)


@pytest.mark.parametrize("out", [None, torch.float16, torch.bfloat16])
@settings(max_examples=10, deadline=None)
@given(m=st.integers(0, 9), k=st.integers(1, 20), n=st.integers(1, 9), extras=st.booleans())
def test_folded_weights_give_either_output(*, out: Any, m: int, k: int, n: int, extras: bool) -> None:
    one = drawn(16 * k, 16 * n, group=128, name="w4a8", seed=m)
    codes, scales = billhook.quantize_activations(torch.randn(m, 16 * k))
    given = out or torch.bfloat16
    bias = torch.randn(16 * n, dtype=given) if extras else None
    got = billhook.gemm(codes, one.pack(), bias, token_scales=scales, output_dtype=out)
    assert (got.dtype, got.shape) == (given, (m, 16 * n))
    ref = reference.gemm(numbers(codes, scales), exact(one), None if bias is None else bias.double())
    check(got, ref, 16 * k, E4M3FN)
    into = torch.full_like(got, torch.nan)
    billhook.gemm(codes, one.pack(), bias, token_scales=scales, out=into)
    assert torch.equal(into, got)


@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16])
def test_experts_have_channel_scales_of_their_own(out: Any) -> None:
    k, n = 144, 48
    parts = [drawn(k, n, group=128, name="w4a8", seed=expert) for expert in range(3)]
    weight, right = stack_weights([one.pack() for one in parts]), np.stack([exact(one) for one in parts])
    assert weight.channel_scales.shape == (3, n)
    codes, scales = billhook.quantize_activations(torch.randn(7, k))
    ids, factors, bias = torch.randint(-1, 3, (7, 2)), torch.rand(7, 2), torch.randn(3, n).to(out)
    block_m = billhook.moe_block_m(weight, 7, 2, output_dtype=out)
    assert block_m == billhook.moe_block_m(weight, 7, 2, torch.float8_e4m3fn)
    given = {"token_scales": scales, "output_dtype": out}
    got = billhook.moe_gemm(codes, weight, billhook.route(ids, 3, block_m), factors, bias, **given)
    check(got, reference.moe_gemm(numbers(codes, scales), right, ids, factors, bias.double()), k, E4M3FN)
    assert torch.equal(billhook.moe_gemm(codes, weight, ids, factors, bias, **given), got)


def test_a_function_of_folded_weights_is_one_graph() -> None:
    weight = drawn(128, N, group=128, name="w4a8").pack()
    codes, scales = billhook.quantize_activations(torch.randn(3, 128))

    def layer(a: Any, scales: Any) -> Any:
        return billhook.gemm(a, weight, token_scales=scales, output_dtype=torch.float16)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got = compiled(codes, scales)
    assert got.dtype == torch.float16 and torch.equal(got, layer(codes, scales))


def test_folded_weights_refuse_what_they_are_not_multiplied_by() -> None:
    weight = drawn(group=128, name="w4a8").pack()
    for a, options, words in (
        (WIDE, {}, r"float8_e4m3fn activations alone .got torch.bfloat16.*u4b8 weights take 16 bits"),
        (CODES.to(torch.int8), {"token_scales": SCALES}, "u4b8, u4, u8b128 weights .got w4a8"),
        (CODES, {}, "need token_scales"),
        (CODES, {"token_scales": SCALES, "channel_scales": torch.ones(N)}, "channel_scales of their own"),
        (CODES, {"token_scales": SCALES, "output_dtype": torch.float32}, "float16 or torch.bfloat16"),
    ):
        with pytest.raises(WeightError, match=words):
            billhook.gemm(a, weight, **options)
    with pytest.raises(WeightError, match=r"give torch.bfloat16 .asked for torch.float16"):
        billhook.gemm(CODES, drawn().pack(), token_scales=SCALES, output_dtype=torch.float16)
    arguments = (CODES, weight.codes, weight.scales, N, 128, "w4a8", None, None, None, True, "", SCALES)
    with pytest.raises(WeightError, match="w4a8 weights need channel_scales"):
        torch.ops.billhook.gemm(*arguments)


@each_type
def test_the_operators_pass_torch_s_own_checks(dtype: Any) -> None:
    weight = drawn().pack()
    codes, scales = billhook.quantize_activations(torch.randn(4, K), dtype)
    head = (codes, weight.codes, weight.scales, N, -1, "u4b8", None, None, None, True, "", scales)
    # torch compares no float8 tensors, as test_schema would have to
    tests = ("test_faketensor",) if dtype.is_floating_point else ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.billhook.gemm.default, head, test_utils=tests)
    out = torch.empty(4, N, dtype=torch.bfloat16)
    torch.library.opcheck(torch.ops.billhook.gemm_out.default, (out, *head), test_utils=tests)


WIDE = torch.randn(4, K, dtype=torch.bfloat16)
CODES, SCALES = billhook.quantize_activations(WIDE)


@pytest.mark.parametrize(
    ("a", "weight", "options", "words"),
    [
        (CODES, {}, {}, ["need token_scales", "quantize_activations"]),
        (WIDE, {}, {"token_scales": SCALES}, ["bfloat16", "token_scales and channel_scales are for"]),
        (WIDE, {}, {"channel_scales": torch.ones(N)}, ["bfloat16", "channel_scales are for"]),
        (CODES, {"name": "u8b128"}, {"token_scales": SCALES}, ["u4b8", "u8b128"]),
        (CODES.to(torch.int8), {"name": "mxfp4", "group": 32}, {"token_scales": SCALES}, ["u8b128", "mxfp4"]),
        (CODES, {"name": "nvfp4", "group": 16}, {"token_scales": SCALES}, ["u4b8, u4, fp8, mxfp4", "nvfp4"]),
        (CODES, {}, {"token_scales": SCALES[:3]}, ["4 elements", "(3, 1)"]),
        (CODES, {}, {"token_scales": SCALES.half()}, ["float32", "float16"]),
        (CODES, {}, {"token_scales": torch.ones(4, 2)[:, :1]}, ["contiguous"]),
        (CODES, {}, {"token_scales": SCALES, "channel_scales": torch.ones(3)}, ["48 elements", "(3,)"]),
        (
            CODES,
            {},
            {"token_scales": SCALES, "channel_scales": torch.ones(N + 2)[2:]},
            ["16-byte", ".clone()"],
        ),
        (CODES, {}, {"token_scales": SCALES, "bias": torch.ones(N)}, ["bias", "bfloat16"]),
        (CODES, {}, {"token_scales": SCALES, "out": CODES.new_empty(4, N)}, ["out must be torch.bfloat16"]),
    ],
)
def test_each_refusal_names_value_and_remedy(
    a: Any, weight: dict[str, Any], options: dict[str, Any], words: list[str]
) -> None:
    packed: PackedWeight = drawn(**weight).pack()
    with pytest.raises(WeightError) as caught:
        billhook.gemm(a, packed, **options)
    for word in words:
        assert word in str(caught.value)


def test_rows_must_begin_at_multiples_of_16_bytes() -> None:
    one = torch.zeros(4, K + 8, dtype=torch.int8)[:, :K]
    with pytest.raises(WeightError, match="16 bytes"):
        billhook.gemm(one, drawn().pack(), token_scales=SCALES)


@pytest.mark.parametrize(
    ("x", "dtype", "word"),
    [
        (torch.ones(2, 4), torch.float16, "float8_e4m3fn or torch.int8"),
        (torch.ones(4), torch.int8, r"\(4,\)"),
        (torch.ones(2, 4, dtype=torch.int32), torch.int8, "int32"),
    ],
)
def test_what_cannot_be_quantized_is_named(x: Any, dtype: Any, word: str) -> None:
    with pytest.raises(WeightError, match=word):
        billhook.quantize_activations(x, dtype)


def test_whether_a_kernel_takes_the_activations_is_asked_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fp8, nvfp4 = (
        billhook.quantize_weight(torch.randn(64, 48).bfloat16(), format=one) for one in ("fp8", "nvfp4")
    )
    assert operators.why_unserved(fp8, torch.float8_e4m3fn) is None
    assert operators.why_unserved(nvfp4, torch.int8) == "nvfp4 weights are not multiplied by torch.int8"
    asked = []

    def choose(request: Any) -> None:
        asked.append((request.problem, request.device))
        raise UnsupportedError("e4m3fn activations need compute capability 8.9")

    monkeypatch.setattr(operators, "kernels", lambda: SimpleNamespace(choose=choose))
    monkeypatch.setattr(PackedWeight, "device", SimpleNamespace(type="cuda", index=1))
    assert (
        operators.why_unserved(fp8, torch.float8_e4m3fn) == "e4m3fn activations need compute capability 8.9"
    )
    ((problem, device),) = asked
    assert (str(problem.types), problem.n, problem.k, device) == ("e4m3fn_e4m3fn_bf16_bf16", 48, 64, 1)
