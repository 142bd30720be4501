"""The operators on CPU tensors: results, schemas, tracing, and every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import billhook  # noqa: E402
from billhook.errors import InputError, WeightError  # noqa: E402
from billhook.formats import host, reference  # noqa: E402
from billhook.formats.packed import find_format  # noqa: E402
from billhook.ops import PackedWeight, stack_weights, unpack_weight  # noqa: E402
from billhook.ops import drawn as drawing  # noqa: E402
from billhook.ops.tensors import DTYPES, ELEMENTS  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

WIDE = [name for name, held in FORMATS.items() if held.activations]  # multiplied by 16-bit activations
SIZES = st.integers(1, 9).map(lambda count: 16 * count)


def draw(
    k: int, n: int, group: int = 32, experts: int = 0, *, dtype: Any = torch.bfloat16, name: str = "u4b8"
) -> PackedWeight:
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**31)
    held = find_format(name)
    drawn = [
        drawing.draw(held, k, n, group, dtype=dtype, generator=generator).pack()
        for _ in range(max(1, experts))
    ]
    return stack_weights(drawn) if experts else drawn[0]


def check(out: Any, ref: reference.Reference, k: int, group: int) -> None:
    bound = reference.error_bound(k, group, ELEMENTS[out.dtype], rounded_weights=False)
    assert np.isfinite(ref.value).all()
    error = np.abs(out.double().numpy() - ref.value)
    assert (error <= bound.allowed(ref.value, ref.magnitude, ref.activations)).all()


@pytest.mark.parametrize("name", WIDE)
@settings(max_examples=10, deadline=None)
@given(data=st.data(), m=st.integers(0, 9), n=SIZES, with_bias=st.booleans(), seed=st.integers(0, 2**31))
def test_gemm_is_within_the_bound(
    *, name: str, data: st.DataObject, m: int, n: int, with_bias: bool, seed: int
) -> None:
    held = FORMATS[name]
    group = data.draw(st.sampled_from(held.group_sizes), "group")
    k = data.draw(st.integers(1, 9), "k") * (32 if held.scale else 16)
    dtype = data.draw(st.sampled_from([DTYPES[one] for one in held.activations]), "dtype")
    torch.manual_seed(seed)
    weight, a = draw(k, n, group, dtype=dtype, name=name), torch.randn(m, k, dtype=dtype)
    assert dtype in weight.dtypes
    bias = torch.randn(n, dtype=dtype) if with_bias else None
    out = billhook.gemm(a, weight, bias)
    exact = host.dequantize(unpack_weight(weight), np.float64)
    check(out, reference.gemm(a.double(), exact, None if bias is None else bias.double()), k, group)
    into = torch.full((m, n + 16), torch.nan, dtype=dtype)
    assert billhook.gemm(a, weight, bias, out=into[:, :n]).data_ptr() == into.data_ptr()
    assert torch.equal(into[:, :n], out)
    assert into[:, n:].isnan().all()


@pytest.mark.parametrize("name", WIDE)
@settings(max_examples=8, deadline=None)
@given(
    tokens=st.integers(0, 7),
    experts=st.integers(1, 5),
    top_k=st.integers(1, 3),
    block_m=st.sampled_from([1, 8, 16]),
    extras=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_moe_gemm_is_within_the_bound_with_and_without_a_routing(
    *, name: str, tokens: int, experts: int, top_k: int, block_m: int, extras: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    k, n, group = 160, 48, FORMATS[name].group_sizes[0]
    weight, a = draw(k, n, group, experts, name=name), torch.randn(tokens, k, dtype=torch.bfloat16)
    ids = torch.randint(-1, experts, (tokens, top_k))
    factors = torch.rand(tokens, top_k) if extras else None
    bias = torch.randn(experts, n, dtype=torch.bfloat16) if extras else None
    routing = billhook.route(ids, experts, block_m)
    out = billhook.moe_gemm(a, weight, routing, factors, bias)
    exact = host.dequantize(unpack_weight(weight), np.float64)
    ref = reference.moe_gemm(a.double(), exact, ids, factors, None if bias is None else bias.double())
    check(out, ref, k, group)
    assert torch.equal(billhook.moe_gemm(a, weight, ids, factors, bias), out)


def test_both_gemms_of_a_layer_share_a_routing() -> None:
    torch.manual_seed(0)
    w13, w2 = draw(64, 96, experts=4), draw(96, 32, experts=4)
    a, ids = torch.randn(5, 64, dtype=torch.bfloat16), torch.randint(0, 4, (5, 2))
    routing = billhook.route(ids, 4, billhook.moe_block_m(w13, 5, 2))
    hidden = billhook.moe_gemm(a, w13, routing)
    out = billhook.moe_gemm(hidden, w2, routing, torch.rand(5, 2))
    assert out.shape == (10, 32)
    alone = billhook.moe_gemm(hidden, w2, ids.reshape(10, 1))
    assert torch.equal(billhook.moe_gemm(hidden, w2, routing), alone)


def test_the_operators_pass_torch_s_own_checks() -> None:
    dense, moe = draw(64, 48), draw(64, 48, experts=3)
    a, ids = torch.randn(4, 64, dtype=torch.bfloat16), torch.randint(0, 3, (4, 2))
    operators = torch.ops.billhook
    zeroed, bias = draw(64, 48, name="u4"), torch.randn(48, dtype=torch.bfloat16)
    head = (a, dense.codes, dense.scales, 48, 32, "u4b8")
    torch.library.opcheck(operators.gemm.default, head)
    torch.library.opcheck(operators.gemm_out.default, (a.new_empty(4, 48), *head))
    head = (a, zeroed.codes, zeroed.scales, 48, 32, "u4", zeroed.zeros, None, bias, False, "")
    torch.library.opcheck(operators.gemm.default, head)
    head, factors = (a, moe.codes, moe.scales, 48, 32, "u4b8"), torch.rand(4, 2)
    torch.library.opcheck(operators.moe_gemm_topk.default, (*head, ids, factors))
    sorting = (*head, 2, *operators.route(ids, 3, 8), 8, False, factors)
    torch.library.opcheck(operators.moe_gemm.default, sorting)
    torch.library.opcheck(operators.moe_gemm_out.default, (a.new_empty(8, 48), *sorting))
    torch.library.opcheck(operators.route.default, (ids, 3, 8))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_is_one_graph(dynamic: bool) -> None:
    dense, moe = draw(64, 64), draw(64, 48, experts=3)

    def layer(a: Any, ids: Any) -> Any:
        hidden = billhook.gemm(a, dense)
        routing = billhook.route(ids, 3, 8)
        return billhook.moe_gemm(hidden, moe, routing) + billhook.moe_gemm(hidden, moe, ids)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (3, 6):
        a, ids = torch.randn(tokens, 64, dtype=torch.bfloat16), torch.randint(0, 3, (tokens, 2))
        assert torch.equal(compiled(a, ids), layer(a, ids))


def test_activations_that_do_not_fit_are_refused() -> None:
    weight = draw(64, 48)
    good = torch.randn(4, 128, dtype=torch.bfloat16)[:, :64]
    assert billhook.gemm(good, weight).shape == (4, 48)
    for bad, words in (
        (good.half(), "torch.bfloat16 like the weight's scales"),
        (good[:, :48], r"must be \[m, 64\], as the weight's k is \(got \(4, 48\)\)"),
        (good[0, 0], r"must be \[m, 64\]"),
        (torch.randn(64, 4, dtype=torch.bfloat16).t(), "contiguous"),
        (torch.randn(4, 68, dtype=torch.bfloat16)[:, :64], "multiples of 16 bytes"),
        (torch.randn(64, dtype=torch.bfloat16).expand(4, 64), "rows of their own"),
        (torch.randn(4 * 64 + 1, dtype=torch.bfloat16)[1:].view(4, 64), "multiples of 16 bytes"),
        (good[0], r"must be \[m, k\] \(got shape \(64,\)\)"),
        (good.reshape(1, 4, 64), r"reshape\(-1, k\)"),
        (good.tolist(), "torch.Tensor"),
    ):
        with pytest.raises(WeightError, match=words):
            billhook.gemm(bad, weight)


def test_other_tensors_that_do_not_fit_are_refused() -> None:
    weight, moe = draw(64, 48), draw(64, 48, experts=3)
    a, ids = torch.randn(4, 64, dtype=torch.bfloat16), torch.randint(0, 3, (4, 2))
    routing = billhook.route(ids, 3, 8)
    for call, error, words in (
        (lambda: billhook.gemm(a, weight, torch.zeros(47, dtype=a.dtype)), WeightError, "bias must hold 48"),
        (lambda: billhook.gemm(a, weight, torch.zeros(48)), WeightError, "torch.bfloat16"),
        (lambda: billhook.gemm(a, weight, out=a.new_empty(4, 47)), WeightError, r"\[4, 48\]"),
        (lambda: billhook.gemm(a, weight, out=a.new_empty(48, 4).t()), WeightError, "dense rows"),
        (lambda: billhook.gemm(a, moe), WeightError, "holds experts; use moe_gemm"),
        (lambda: billhook.moe_gemm(a, weight, ids), WeightError, "is dense; use gemm"),
        (lambda: billhook.gemm(a, weight.codes), WeightError, "must be a billhook.PackedWeight"),
        (lambda: billhook.moe_gemm(a, moe, ids, torch.rand(3)), WeightError, "topk_weights must hold 8"),
        (lambda: billhook.moe_gemm(a, moe, ids, torch.rand(4, 2).half()), WeightError, "float32"),
        (lambda: billhook.moe_gemm(a, moe, ids[:3]), InputError, r"topk_ids must be \[4, top_k\]"),
        (lambda: billhook.moe_gemm(a, moe, ids.float()), InputError, "int32 or int64"),
        (lambda: billhook.moe_gemm(a, moe, ids.tolist()), InputError, r"billhook\.route gave.*\(got list\)"),
        (lambda: billhook.grouped_gemm(a, moe, [0, 1, 2, 4]), InputError, r"torch\.Tensor \(got list\)"),
        (lambda: billhook.grouped_gemm(a, weight, ids), WeightError, "is dense; use gemm"),
        (lambda: billhook.moe_gemm(a[:3], moe, routing), InputError, r"4 rows \(tokens\) or 8 rows"),
        (lambda: billhook.moe_gemm(a, moe, ids, out=a.new_empty(8, 48)), InputError, "billhook.route first"),
        (lambda: billhook.moe_gemm(a, moe, billhook.route(ids, 2, 8)), InputError, "2 experts"),
        (lambda: billhook.route(ids, 0, 8), InputError, "1 to 1024"),
        (lambda: billhook.route(ids, 1025, 8), InputError, "1 to 1024"),
        (lambda: billhook.route(ids, 3, 0), InputError, "block_m must be at least 1"),
        (lambda: billhook.route(ids[0], 3, 8), InputError, r"\[tokens, top_k\]"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_package_without_torch_in_use_does_not_import_it() -> None:
    import subprocess
    import sys

    code = "import sys, billhook; billhook.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'gemv'"):
        _ = billhook.gemv


def test_activations_of_another_type_than_the_format_s_are_refused() -> None:
    a = torch.randn(4, 64)
    mx, nv, u4 = (
        draw(64, 48, group, name=name) for name, group in (("mxfp4", 32), ("nvfp4", 16), ("u4", 32))
    )
    assert billhook.gemm(a.half(), nv).dtype == torch.float16
    for dtype, weight, words in (
        (torch.float16, mx, "mxfp4 weights must be torch.bfloat16"),
        (torch.float32, nv, "torch.float16 or torch.bfloat16"),
        (torch.float16, u4, "torch.bfloat16 like the weight's scales"),
    ):
        with pytest.raises(WeightError, match=words):
            billhook.gemm(a.to(dtype), weight)
    with pytest.raises(WeightError, match=r"must be torch\.bfloat16"):
        billhook.moe_block_m(mx, 4, 2, torch.float16)
    a = a.bfloat16()
    for arguments in (
        (a, u4.codes, u4.scales, 48, 32, "u4"),
        (a, nv.codes, nv.scales, 48, 16, "nvfp4"),
        (a, mx.codes, mx.scales, 48, 32, "mxfp4", mx.scales),
    ):
        with pytest.raises(WeightError, match="lack or have too many"):
            torch.ops.billhook.gemm(*arguments)
    with pytest.raises(WeightError, match="no kernel reads weights of format 'u5'"):
        torch.ops.billhook.gemm(a, u4.codes, u4.scales, 48, 32, "u5", u4.zeros)
