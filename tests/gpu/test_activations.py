"""8-bit activations on the GPU: tiles, formats and groups, odd shapes, experts, and the host's numbers."""

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
from billhook.dtypes import E4M3FN, F16, S8, DType  # noqa: E402
from billhook.errors import UnsupportedError  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.packed import find_format  # noqa: E402
from billhook.ops.drawn import Drawn, draw  # noqa: E402
from billhook.ops.weight import stack_weights  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

DTYPES = {torch.float8_e4m3fn: E4M3FN, torch.int8: S8}
each_type = pytest.mark.parametrize("dtype", DTYPES)
each_output = pytest.mark.parametrize("out", ELEMENTS)
# A format of weights, a size of groups, and the activations that multiply it.
each_format = pytest.mark.parametrize(
    ("dtype", "name", "group"),
    [
        (dtype, held.name, group)
        for dtype, element in DTYPES.items()
        for held in FORMATS.values()
        if element in held.narrow_activations
        for group in held.group_sizes
    ],
)
ON_SM90 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_sm90 = pytest.mark.skipif(not ON_SM90, reason="Machete needs wgmma, on GPUs of 9.0")
SOME = {  # tiles: from small to large
    *("m8n128k256", "m24n128k256", "m32n64k256", "m48n256k128", "m64n128k256"),
    *("machete-m16n128k256", "machete-m64n128k256", "machete-m80n192k128", "machete-m96n128k128"),
    *("machete-m192n128k128c2", "machete-m240n128k128", "machete-m256n128k128"),
    *("machete-grouped-m16n128k256", "machete-grouped-m80n128k256", "machete-grouped-m256n128k128"),
}
FEWEST_FOR_RMS = 256  # elements below which a mean square says little


@pytest.fixture(autouse=True)
def served(request: pytest.FixtureRequest) -> None:
    """Skip activations that this GPU has no instructions for."""
    callspec = getattr(request.node, "callspec", None)
    dtype = None if callspec is None else callspec.params.get("dtype")
    if dtype == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 activations need a GPU of 8.9 or later")
    if callspec is not None and callspec.params.get("name") == "w4a8" and not ON_SM90:
        pytest.skip("scales are folded on GPUs of 9.0")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@cache
def compiled(
    element: DType, out: DType, indexed: bool, name: str = "u4b8", group: int = -1
) -> list[KernelConfig]:
    """Return tiles that are legal for 8-bit activations, compiled into the cache: all for codes of u4b8."""
    arch, held = native_arch(torch.cuda.get_device_capability()), find_format(name)
    types = GemmTypes(element, held.weight, held.scale_type(out), out)
    shapes = [one for one in load().shapes if name in ("u4b8", "w4a8") or one.name in SOME]
    found = [deepest(shape.kernel(types, group, indexed, arch)) for shape in shapes]
    configs = [config for config, why_not in found if why_not is None]
    assert configs
    compile_all(configs)
    return configs


def drawn(k: int, n: int, out: Any, *, seed: int = 0, name: str = "u4b8", group: int = -1) -> Drawn:
    generator = torch.Generator("cuda").manual_seed(seed)
    return draw(find_format(name), k, n, group, dtype=out, generator=generator)


def exact(one: Drawn) -> np.ndarray:
    return one.exact(torch.arange(one.codes.shape[1], device="cuda")).cpu().numpy()


def numbers(codes: Any, scales: Any) -> np.ndarray:
    """Return quantized activations in float64."""
    return (codes.double() * scales.double().view(-1, 1)).cpu().numpy()


def check(out: Any, ref: reference.Reference, k: int, element: DType, *, what: str, group: int = -1) -> None:
    """Fail unless each element, and the mean square of all, is within its bound."""
    bound = reference.error_bound(k, group, ELEMENTS[out.dtype], rounded_weights=False, activations=element)
    error = np.abs(host(out) - ref.value)
    worst = error / bound.allowed(ref.value, ref.magnitude, ref.activations)
    assert (worst <= 1).all(), (
        f"{what}: {np.argwhere(~(worst <= 1))[:4].tolist()}, {worst.max():.3g} of bound"
    )
    if error.size >= FEWEST_FOR_RMS:
        rms = np.sqrt((error**2).mean() / (ref.value**2).mean())
        assert rms <= bound.rms, f"{what}: rms {rms:.3g}, {bound.rms:.3g} is allowed"


def check_dense(
    dtype: Any, out: Any, n: int, k: int, counts: tuple[int, ...], *, name: str = "u4b8", group: int = -1
) -> None:
    """Run every tile for some row counts, with and without bias, channel scales and shared tiles."""
    element = DTYPES[dtype]
    one = drawn(k, n, out, name=name, group=group)
    weight, right, bias = one.pack(), exact(one), torch.randn(n, device="cuda").to(out)
    channels = torch.rand(n, device="cuda") + 0.5
    for config in compiled(element, ELEMENTS[out], False, name, group):
        for m, split_k in itertools.product(counts, (True, False)):
            a, scales = billhook.quantize_activations(torch.randn(m, k, device="cuda"), dtype)
            extra, columns = (bias, channels) if m % 2 else (None, None)
            columns = None if weight.channel_scales is not None else columns
            d = torch.full((m, n), torch.nan, dtype=out, device="cuda")
            given = {"token_scales": scales, "channel_scales": columns, "split_k": split_k}
            billhook.gemm(a, weight, extra, config=config, out=d, **given)
            times = 1 if columns is None else host(columns)
            ref = reference.gemm(numbers(a, scales), right * times, host(extra))
            what = f"{config} m={m} n={n} k={k} split_k={split_k}"
            check(d, ref, k, element, what=what, group=find_format(name).summed_group(group))


def check_experts(
    dtype: Any, out: Any, n: int, k: int, counts: tuple[int, ...], *, name: str = "u4b8", group: int = -1
) -> None:
    """Run every tile of experts for some token counts, with and without bias and top-k weights."""
    experts, top_k, element = 5, 2, DTYPES[dtype]
    parts = [drawn(k, n, out, seed=expert, name=name, group=group) for expert in range(experts)]
    weight, right = stack_weights([one.pack() for one in parts]), np.stack([exact(one) for one in parts])
    bias = torch.randn(experts, n, device="cuda").to(out)
    for config in compiled(element, ELEMENTS[out], True, name, group):
        for tokens in counts:
            a, scales = billhook.quantize_activations(torch.randn(tokens, k, device="cuda"), dtype)
            ids = torch.rand(tokens, experts, device="cuda").topk(top_k, dim=1).indices
            factors = torch.rand(tokens, top_k, device="cuda") if tokens > 1 else None
            extra = bias if tokens != 130 else None
            routing = billhook.route(ids, experts, config.tile.tile_m, complete=True)
            d = torch.full((tokens * top_k, n), torch.nan, dtype=out, device="cuda")
            given = {"token_scales": scales, "config": config, "out": d}
            billhook.moe_gemm(a, weight, routing, factors, extra, **given)
            ref = reference.moe_gemm(numbers(a, scales), right, ids.cpu(), host(factors), host(extra))
            what = f"{config} tokens={tokens}"
            check(d, ref, k, element, what=what, group=find_format(name).summed_group(group))


def output_of(name: str) -> Any:
    """Return an output that a format has: float16, unless its scales have bfloat16's range."""
    return torch.float16 if F16 in find_format(name).outputs else torch.bfloat16


@each_type
@each_output
@pytest.mark.parametrize(("n", "k"), [(208, 336), (16, 16), (528, 4096)])
def test_every_tile_is_within_its_bound(dtype: Any, out: Any, n: int, k: int) -> None:
    check_dense(dtype, out, n, k, (1, 17, 130, 300))


@each_type
@each_output
def test_every_tile_of_experts_is_within_its_bound(dtype: Any, out: Any) -> None:
    check_experts(dtype, out, 208, 336, (1, 17, 130, 300))


@each_format
def test_every_format_and_group_is_within_its_bound(dtype: Any, name: str, group: int) -> None:
    for n, k in ((208, 352), (528, 2080)):
        check_dense(dtype, output_of(name), n, k, (1, 33, 70), name=name, group=group)


@each_format
def test_experts_of_every_format_and_group_are_within_their_bound(dtype: Any, name: str, group: int) -> None:
    check_experts(dtype, output_of(name), 208, 352, (1, 17, 130), name=name, group=group)


@each_format
def test_the_identity_gives_back_every_weight_to_the_bit(dtype: Any, name: str, group: int) -> None:
    """A sum could hide a weight in a wrong place."""
    k, n, out = 352, 208, torch.bfloat16
    one = drawn(k, n, out, name=name, group=group)
    if one.channel_scales is not None:  # powers of two: nothing is rounded before the output
        one.channel_scales.copy_(2.0 ** -(torch.arange(n) % 12))
    eye, scales = torch.eye(k, device="cuda").to(dtype), torch.ones(1, device="cuda")
    want = torch.from_numpy(exact(one)).to(out)
    for config in compiled(DTYPES[dtype], ELEMENTS[out], False, name, group):
        got = billhook.gemm(eye, one.pack(), token_scales=scales, config=config).cpu()
        assert torch.equal(got, want), config


@on_sm90
@each_output
def test_every_code_under_every_scale_is_rounded_to_e4m3_once(out: Any) -> None:
    """Multiplied by the identity: subnormal scales, those under which products saturate, and both signs."""
    scales = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
    k, n = 144, 256  # two columns more than scales; the second group is short
    one = drawn(k, n, out, name="w4a8", group=128)
    one.scales[0, :254], one.scales[1, 2:] = scales.cuda(), scales.flip(0).cuda()
    one.codes.copy_((torch.arange(k)[:, None] % 16).to(torch.uint8).expand(k, n))
    one.channel_scales.copy_(2.0 ** -(torch.arange(n) % 3))
    eye, whole = torch.eye(k, device="cuda").to(torch.float8_e4m3fn), torch.ones(1, device="cuda")
    want = torch.from_numpy(exact(one)).to(out)
    assert float(want.abs().max()) == 448
    for config in compiled(E4M3FN, ELEMENTS[out], False, "w4a8", 128):
        got = billhook.gemm(eye, one.pack(), token_scales=whole, config=config, output_dtype=out).cpu()
        assert torch.equal(got, want), config


@on_sm90
def test_folded_weights_give_bfloat16_too() -> None:
    narrow, out = torch.float8_e4m3fn, torch.bfloat16
    for n, k in ((208, 336), (528, 4096)):
        check_dense(narrow, out, n, k, (1, 17, 130, 300), name="w4a8", group=128)
    check_experts(narrow, out, 208, 336, (1, 17, 130), name="w4a8", group=128)


@on_sm90
@each_output
def test_chosen_kernels_serve_folded_weights_of_every_row_count(out: Any) -> None:
    k, n = 528, 256
    one = drawn(k, n, out, name="w4a8", group=128)
    weight, right = one.pack(), exact(one)
    for m in (1, 16, 17, 64, 65, 513):
        a, scales = billhook.quantize_activations(torch.randn(m, k, device="cuda"))
        got = billhook.gemm(a, weight, token_scales=scales, output_dtype=out)
        assert got.dtype == out
        check(got, reference.gemm(numbers(a, scales), right), k, E4M3FN, what=f"m={m}")


@pytest.mark.parametrize("m", [3, 70])
@pytest.mark.parametrize("group", [-1, 128])
def test_sums_of_int8_at_the_end_of_their_range(m: int, group: int) -> None:
    """Codes of the largest magnitude and the largest k: 32-bit sums must hold them."""
    k, n = (1 << 17) - 16, 64
    one = drawn(k, n, torch.bfloat16, group=group)
    one.codes.fill_(0)
    a = torch.full((m, k), -128, dtype=torch.int8, device="cuda")
    got = billhook.gemm(a, one.pack(), token_scales=torch.ones(1, device="cuda"))
    check(got, reference.gemm(host(a), exact(one)), k, S8, what="largest codes", group=group)


@each_type
@pytest.mark.parametrize("group", [-1, 128])
def test_chosen_kernels_serve_every_row_count_and_graphs(dtype: Any, group: int) -> None:
    k, n = 512, 256
    one = drawn(k, n, torch.float16, group=group)
    weight, right = one.pack(), exact(one)
    for m in (1, 16, 17, 64, 65, 513):
        a, scales = billhook.quantize_activations(torch.randn(m, k, device="cuda"), dtype)
        got = billhook.gemm(a, weight, token_scales=scales)
        check(got, reference.gemm(numbers(a, scales), right), k, DTYPES[dtype], what=f"m={m}", group=group)
        graph, captured = torch.cuda.CUDAGraph(), torch.empty_like(got)
        with torch.cuda.graph(graph):
            billhook.gemm(a, weight, token_scales=scales, out=captured)
        graph.replay()
        assert torch.equal(captured, got)


@on_sm90
@each_type
@pytest.mark.parametrize("group", [None, 128])
def test_the_documented_operator_takes_float32_channel_scales(dtype: Any, group: int | None) -> None:
    k, n = 512, 256
    codes = torch.randint(0, 16, (k, n), device="cuda")
    words = (codes.reshape(k // 8, 8, n) << (4 * torch.arange(8, device="cuda"))[:, None]).sum(1)
    groups = None if group is None else (torch.rand(k // group, n, device="cuda") + 0.5).half()
    b = billhook.machete_prepack_B(
        words.to(torch.int32), dtype, "uint4b8", None if groups is None else groups.dtype
    )
    a, scales = billhook.quantize_activations(torch.randn(70, k, device="cuda"), dtype)
    channels = torch.rand(n, device="cuda") / 64
    weight = host(codes - 8) * host(channels)
    if groups is not None:
        weight = weight * np.repeat(host(groups), k // len(groups), axis=0)
    got = billhook.machete_mm(
        a,
        b,
        "uint4b8",
        torch.float16,
        b_group_scales=groups,
        b_group_size=group,
        b_channel_scales=channels,
        a_token_scales=scales,
    )
    check(
        got,
        reference.gemm(numbers(a, scales), weight),
        k,
        DTYPES[dtype],
        what="machete_mm",
        group=group or -1,
    )


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9),
    reason="this GPU multiplies e4m3",
)
def test_e4m3_is_refused_in_words_before_8_9() -> None:
    a, scales = billhook.quantize_activations(torch.randn(3, 64, device="cuda"), torch.float8_e4m3fn)
    with pytest.raises(UnsupportedError, match=r"8\.9 or later"):
        billhook.gemm(a, drawn(64, 64, torch.float16).pack(), token_scales=scales)
