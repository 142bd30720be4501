"""8-bit activations on the GPU: every tile of the catalog, odd shapes, experts, and the host's numbers."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from gpu.problems import ELEMENTS, compile_all, host  # noqa: E402

import billhook  # noqa: E402
from billhook.catalog import deepest, load  # noqa: E402
from billhook.config import GemmTypes, KernelConfig  # noqa: E402
from billhook.driver import native_arch  # noqa: E402
from billhook.dtypes import E4M3FN, S8, U4B8, DType  # noqa: E402
from billhook.errors import UnsupportedError  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.packed import find_format  # noqa: E402
from billhook.ops.drawn import Drawn, draw  # noqa: E402
from billhook.ops.weight import stack_weights  # noqa: E402

DTYPES = {torch.float8_e4m3fn: E4M3FN, torch.int8: S8}
each_type = pytest.mark.parametrize("dtype", DTYPES)
each_output = pytest.mark.parametrize("out", ELEMENTS)
on_sm90 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="8-bit activations need wgmma, on GPUs of 9.0",
)
FEWEST_FOR_RMS = 256  # elements below which a mean square says little


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@cache
def compiled(element: DType, out: DType, indexed: bool) -> list[KernelConfig]:
    """Return the catalog's tiles that are legal for 8-bit activations, all compiled into the cache."""
    arch, types = native_arch(torch.cuda.get_device_capability()), GemmTypes(element, U4B8, out, out)
    found = [deepest(shape.kernel(types, -1, indexed, arch)) for shape in load().shapes]
    configs = [config for config, why_not in found if why_not is None]
    assert configs
    compile_all(configs)
    return configs


def drawn(k: int, n: int, out: Any, seed: int = 0) -> Drawn:
    generator = torch.Generator("cuda").manual_seed(seed)
    return draw(find_format("u4b8"), k, n, -1, dtype=out, generator=generator)


def exact(one: Drawn) -> np.ndarray:
    return one.exact(torch.arange(one.codes.shape[1], device="cuda")).cpu().numpy()


def numbers(codes: Any, scales: Any) -> np.ndarray:
    """Return quantized activations in float64."""
    return (codes.double() * scales.double().view(-1, 1)).cpu().numpy()


def check(out: Any, ref: reference.Reference, k: int, element: DType, what: str) -> None:
    """Fail unless each element, and the mean square of all, is within its bound."""
    bound = reference.error_bound(k, -1, ELEMENTS[out.dtype], rounded_weights=False, activations=element)
    error = np.abs(host(out) - ref.value)
    worst = error / bound.allowed(ref.value, ref.magnitude, ref.activations)
    assert (worst <= 1).all(), (
        f"{what}: {np.argwhere(~(worst <= 1))[:4].tolist()}, {worst.max():.3g} of bound"
    )
    if error.size >= FEWEST_FOR_RMS:
        rms = np.sqrt((error**2).mean() / (ref.value**2).mean())
        assert rms <= bound.rms, f"{what}: rms {rms:.3g}, {bound.rms:.3g} is allowed"


@on_sm90
@each_type
@each_output
@pytest.mark.parametrize(("n", "k"), [(208, 336), (16, 16), (528, 4096)])
def test_every_tile_is_within_its_bound(dtype: Any, out: Any, n: int, k: int) -> None:
    one = drawn(k, n, out)
    weight, right, bias = one.pack(), exact(one), torch.randn(n, device="cuda").to(out)
    channels = torch.rand(n, device="cuda") + 0.5
    for config in compiled(DTYPES[dtype], ELEMENTS[out], indexed=False):
        for m, split_k in itertools.product((1, 17, 130, 300), (True, False)):
            a, scales = billhook.quantize_activations(torch.randn(m, k, device="cuda"), dtype)
            extra, columns = (bias, channels) if m % 2 else (None, None)
            d = torch.full((m, n), torch.nan, dtype=out, device="cuda")
            given = {"token_scales": scales, "channel_scales": columns, "split_k": split_k}
            billhook.gemm(a, weight, extra, config=config, out=d, **given)
            times = 1 if columns is None else host(columns)
            ref = reference.gemm(numbers(a, scales), right * times, host(extra))
            check(d, ref, k, DTYPES[dtype], f"{config} m={m} n={n} k={k} split_k={split_k}")


@on_sm90
@each_type
@each_output
def test_every_tile_of_experts_is_within_its_bound(dtype: Any, out: Any) -> None:
    experts, top_k, k, n = 5, 2, 336, 208
    parts = [drawn(k, n, out, seed=expert) for expert in range(experts)]
    weight, right = stack_weights([one.pack() for one in parts]), np.stack([exact(one) for one in parts])
    bias = torch.randn(experts, n, device="cuda").to(out)
    for config in compiled(DTYPES[dtype], ELEMENTS[out], indexed=True):
        for tokens in (1, 17, 130, 300):
            a, scales = billhook.quantize_activations(torch.randn(tokens, k, device="cuda"), dtype)
            ids = torch.rand(tokens, experts, device="cuda").topk(top_k, dim=1).indices
            factors = torch.rand(tokens, top_k, device="cuda") if tokens > 1 else None
            extra = bias if tokens != 130 else None
            routing = billhook.route(ids, experts, config.tile.tile_m, complete=True)
            d = billhook.moe_gemm(a, weight, routing, factors, extra, token_scales=scales, config=config)
            ref = reference.moe_gemm(numbers(a, scales), right, ids.cpu(), host(factors), host(extra))
            check(d, ref, k, DTYPES[dtype], f"{config} tokens={tokens}")


@on_sm90
@each_type
def test_the_identity_gives_back_every_weight_to_the_bit(dtype: Any) -> None:
    """A sum could hide a weight in a wrong place."""
    k, n, out = 336, 208, torch.bfloat16
    one = drawn(k, n, out)
    eye, scales = torch.eye(k, device="cuda").to(dtype), torch.ones(1, device="cuda")
    want = torch.from_numpy(exact(one)).to(out)
    for config in compiled(DTYPES[dtype], ELEMENTS[out], indexed=False):
        got = billhook.gemm(eye, one.pack(), token_scales=scales, config=config).cpu()
        assert torch.equal(got, want), config


@on_sm90
def test_sums_of_int8_at_the_end_of_their_range() -> None:
    """Codes of the largest magnitude and the largest k: 32-bit sums must hold them."""
    k, n = (1 << 17) - 16, 64
    one = drawn(k, n, torch.bfloat16)
    one.codes.fill_(0)
    a = torch.full((3, k), -128, dtype=torch.int8, device="cuda")
    got = billhook.gemm(a, one.pack(), token_scales=torch.ones(1, device="cuda"))
    ref = reference.gemm(host(a), exact(one))
    check(got, ref, k, S8, "largest codes")


@on_sm90
@each_type
def test_chosen_kernels_serve_every_row_count_and_graphs(dtype: Any) -> None:
    k, n = 512, 256
    one = drawn(k, n, torch.float16)
    weight, right = one.pack(), exact(one)
    for m in (1, 64, 65, 513):
        a, scales = billhook.quantize_activations(torch.randn(m, k, device="cuda"), dtype)
        got = billhook.gemm(a, weight, token_scales=scales)
        check(got, reference.gemm(numbers(a, scales), right), k, DTYPES[dtype], f"m={m}")
        graph, captured = torch.cuda.CUDAGraph(), torch.empty_like(got)
        with torch.cuda.graph(graph):
            billhook.gemm(a, weight, token_scales=scales, out=captured)
        graph.replay()
        assert torch.equal(captured, got)


@on_sm90
@each_type
def test_the_documented_operator_takes_float32_channel_scales(dtype: Any) -> None:
    k, n = 512, 256
    codes = torch.randint(0, 16, (k, n), device="cuda")
    words = (codes.reshape(k // 8, 8, n) << (4 * torch.arange(8, device="cuda"))[:, None]).sum(1)
    b = billhook.machete_prepack_B(words.to(torch.int32), dtype, "uint4b8", None)
    a, scales = billhook.quantize_activations(torch.randn(70, k, device="cuda"), dtype)
    channels = torch.rand(n, device="cuda") / 64
    got = billhook.machete_mm(
        a, b, "uint4b8", torch.float16, b_channel_scales=channels, a_token_scales=scales
    )
    ref = reference.gemm(numbers(a, scales), host(codes - 8) * host(channels))
    check(got, ref, k, DTYPES[dtype], "machete_mm")


@each_type
def test_quantizing_gives_the_numbers_of_the_cpu(dtype: Any) -> None:
    x = torch.randn(37, 1000)
    x[3] = 0
    for got, want in zip(
        billhook.quantize_activations(x.cuda(), dtype), billhook.quantize_activations(x, dtype), strict=True
    ):
        assert torch.equal(got.cpu().view(torch.uint8), want.view(torch.uint8))


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0), reason="this GPU has wgmma"
)
@each_type
def test_other_gpus_are_refused_in_words(dtype: Any) -> None:
    a, scales = billhook.quantize_activations(torch.randn(3, 64, device="cuda"), dtype)
    with pytest.raises(UnsupportedError, match=r"9\.0a"):
        billhook.gemm(a, drawn(64, 64, torch.float16).pack(), token_scales=scales)
