"""Quantizing activations on the GPU: the bits of the CPU, whatever the numbers and wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from cpu.dispatch.quantizers import TIES, TYPES, draw  # noqa: E402

import billhook  # noqa: E402
from billhook.dtypes import BF16, E4M3FN, S8, DType  # noqa: E402
from billhook.formats.packed import find_format  # noqa: E402
from billhook.ops import on_cpu  # noqa: E402
from billhook.ops.drawn import draw as draw_weight  # noqa: E402
from billhook.ops.tensors import from_numpy  # noqa: E402

CODES = {torch.float8_e4m3fn: E4M3FN, torch.int8: S8}
each_code = pytest.mark.parametrize("dtype", CODES)
each_type = pytest.mark.parametrize("element", TYPES, ids=str)


def same(got: tuple[Any, Any], want: tuple[Any, Any]) -> None:
    """Fail unless codes and scales are equal to the bit."""
    for mine, theirs in zip(got, want, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        differ = mine.cpu().view(torch.uint8) != theirs.view(torch.uint8)
        assert not differ.any(), differ.nonzero()[:4].tolist()


def check(x: Any, dtype: Any, scale: Any = None) -> None:
    """Quantize on the GPU what lies there, and on the CPU."""
    on_host = scale.cpu() if isinstance(scale, torch.Tensor) else scale
    same(
        billhook.quantize_activations(x, dtype, scale), billhook.quantize_activations(x.cpu(), dtype, on_host)
    )


def drawn(rows: int, k: int, element: DType, seed: int = 0) -> Any:
    return from_numpy(draw(rows, k, element, seed)).cuda()


@each_code
@each_type
@pytest.mark.parametrize("k", [1, 7, 96, 1000, 4096, 14336, 16385, 65552])
def test_numbers_of_all_kinds(dtype: Any, element: DType, k: int) -> None:
    check(drawn(33, k, element), dtype)


@each_code
@each_type
def test_more_tokens_than_ctas(dtype: Any, element: DType) -> None:
    x = drawn(20000, 48, element)
    check(x, dtype)
    first = billhook.quantize_activations(x, dtype)
    for _ in range(5):
        same(billhook.quantize_activations(x, dtype), tuple(one.cpu() for one in first))


@each_code
@each_type
def test_tokens_may_lie_anywhere(dtype: Any, element: DType) -> None:
    x = drawn(40, 512, element)
    for part in (x[:, :256], x[::3, 8:], x[:, 1:257], x[:, :99], x[:1], x[:1].expand(5, 512), x.t()):
        check(part, dtype)


@each_code
@each_type
def test_static_scales(dtype: Any, element: DType) -> None:
    x = drawn(33, 1024, element)
    for scale in (1.0, 0.0123, 2.0**-4, 2.0**-149, 1e-39, 2.0**-66, 2.0**66, 3e38):
        check(x, dtype, scale)
        check(x, dtype, torch.tensor([scale], device="cuda"))
    check(x, dtype, torch.tensor(0.02, dtype=torch.bfloat16, device="cuda"))
    check(x, dtype, torch.zeros(1, device="cuda"))


@each_code
@each_type
def test_quotients_beside_ties(dtype: Any, element: DType) -> None:
    """Numbers over scales that put them on ties, or beside: given ones, and those that rows find."""
    rng = np.random.default_rng(0)
    ties = TIES[CODES[dtype]]
    for _ in range(100):
        number = rng.uniform(0.25, 4, 1).astype(TYPES[element]).astype(np.float64)
        scale = float(np.float32(number[0] / rng.choice(ties)))
        around = (np.concatenate([ties, TIES[S8], [1, 3, 7]]) * scale).astype(np.float32)
        around = np.concatenate([number, around, np.nextafter(around, 0), np.nextafter(around, np.inf)])
        x = from_numpy(np.stack([around, -around]).astype(TYPES[element])).cuda()
        check(x, dtype, scale)
    largest = rng.integers(33, 64, (4096, 1)) * 2.0 ** rng.integers(-8, 8, (4096, 1))
    shares = np.array([1, 1 / 2, -1 / 2, 3 / 64, -3 / 64, 3 / 32, 3 / 128, 0])
    check(from_numpy((largest * shares).astype(TYPES[element])).cuda(), dtype)


@each_code
def test_floats_of_all_sizes_over_scales_of_all_sizes(dtype: Any) -> None:
    """Every 37th of all floats, the 64 scales from the smallest to the largest."""
    generator = torch.Generator("cuda").manual_seed(0)
    for part in range(64):
        bits = torch.arange(part, 2**32, 64 * 37, device="cuda", dtype=torch.int64)
        x = bits.to(torch.int32).view(torch.float32)
        x = torch.where(x.isfinite(), x, 1.0).view(1, -1)
        scale = torch.rand(1, device="cuda", generator=generator) * 2.0 ** (4 * part - 128)
        same(
            billhook.quantize_activations(x, dtype, scale),
            tuple(one.cpu() for one in on_cpu.quantize_activations(x, dtype, scale)),
        )


@each_code
@each_type
def test_what_is_not_finite_stays_in_its_own_token(dtype: Any, element: DType) -> None:
    x = drawn(16, 256, element)
    x[0, 5], x[2, 90] = torch.nan, -torch.inf
    codes, scales = billhook.quantize_activations(x, dtype)
    assert scales[0].isnan() and scales[2].isinf()
    others = [row for row in range(16) if row not in (0, 2)]
    want = billhook.quantize_activations(x[others].cpu(), dtype)
    same((codes.view(torch.uint8)[others].view(dtype), scales[others]), want)
    codes, _ = billhook.quantize_activations(x, dtype, 0.5)
    assert codes[2, 90].float() == (-448 if dtype.is_floating_point else -128)
    assert codes[0, 5].float().isnan() if dtype.is_floating_point else codes[0, 5] == 0


@each_code
@pytest.mark.parametrize("given", [False, True])
def test_graphs_and_what_runs_before_and_behind(dtype: Any, given: bool) -> None:
    """A kernel writes x, one quantizes, a GEMM reads: in a stream, and in a graph, over and over."""
    if dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 activations need a GPU of 8.9 or later")
    generator = torch.Generator("cuda").manual_seed(0)
    weight = draw_weight(find_format("u4b8"), 1024, 512, -1, dtype=torch.bfloat16, generator=generator).pack()
    scale = torch.tensor([0.03], device="cuda") if given else None
    source = torch.randn(20, 130, 1024, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(130, 1024, device="cuda", dtype=torch.bfloat16)

    def layer() -> Any:
        codes, scales = billhook.quantize_activations(x, dtype, scale)
        return codes, scales, billhook.gemm(codes, weight, token_scales=scales)

    want, in_turn = [], []
    for one in source:
        x.copy_(one)
        torch.cuda.synchronize()
        want.append(layer())
        torch.cuda.synchronize()
    for one in source:
        torch.mul(one, 1, out=x)
        in_turn.append(layer())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer()
    for i, one in enumerate(source):
        torch.mul(one, 1, out=x)
        graph.replay()
        for right, mine, again in zip(want[i], in_turn[i], captured, strict=True):
            assert torch.equal(right.view(torch.uint8), mine.view(torch.uint8))
            assert torch.equal(right.view(torch.uint8), again.view(torch.uint8))


@each_code
def test_compiled_functions(dtype: Any) -> None:
    def quantize(x: Any, scale: Any) -> Any:
        return billhook.quantize_activations(x * 2, dtype, scale)

    compiled = torch.compile(quantize, fullgraph=True)
    scale = torch.tensor([0.02], device="cuda")
    for rows in (3, 64):
        x = torch.randn(rows, 256, device="cuda", dtype=torch.bfloat16)
        for one in (scale, None):
            same(compiled(x, one), tuple(each.cpu() for each in quantize(x, one)))


@each_code
def test_streams_other_than_the_first(dtype: Any) -> None:
    x = drawn(64, 4096, BF16)
    want = billhook.quantize_activations(x.cpu(), dtype)
    with torch.cuda.stream(torch.cuda.Stream()):
        got = billhook.quantize_activations(x, dtype)
        torch.cuda.current_stream().synchronize()
    same(got, want)
