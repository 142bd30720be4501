"""Every weight format on the GPU: every tile, all codes, odd shapes, scales at the ends of their range."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from gpu.problems import ELEMENTS, check, compiled, host  # noqa: E402

import billhook  # noqa: E402
from billhook.dtypes import E2M1F, E4M3FN  # noqa: E402
from billhook.families import rounds_weights  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.elements import numpy_dtype  # noqa: E402
from billhook.ops.drawn import Drawn, draw  # noqa: E402
from billhook.ops.weight import stack_weights  # noqa: E402
from billhook.weights import FORMATS, PackedFormat  # noqa: E402

CASES = [
    (held, dtype, group)
    for held in FORMATS.values()
    for dtype, element in ELEMENTS.items()
    if element in held.activations
    for group in held.group_sizes
]
each_case = pytest.mark.parametrize(
    ("held", "dtype", "group"),
    CASES,
    ids=[f"{held.name}-{ELEMENTS[dtype]}-{group}" for held, dtype, group in CASES],
)
LARGEST_SCALE = {E2M1F: 252, E4M3FN: 246}  # e8m0 code beyond which a weight exceeds bf16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def generator(seed: int = 0) -> Any:
    return torch.Generator("cuda").manual_seed(seed)


def activations(m: int, k: int, dtype: Any) -> Any:
    return torch.randn(m, k, device="cuda").to(dtype)


def exact(drawn: Drawn) -> np.ndarray:
    """Return all weights [k, n] in float64 on the host."""
    return drawn.exact(torch.arange(drawn.codes.shape[1], device="cuda")).cpu().numpy()


@each_case
@pytest.mark.parametrize(("n", "k"), [(208, 352), (512, 1024)])
def test_every_tile_is_within_its_bound(held: PackedFormat, dtype: Any, group: int, n: int, k: int) -> None:
    drawn = draw(held, k, n, group, dtype=dtype, generator=generator())
    weight, right, bias = drawn.pack(), exact(drawn), activations(1, n, dtype)[0]
    for config in compiled(dtype, group, indexed=False, weights=held.name):
        tile_m = config.tile.tile_m
        for m, split_k in itertools.product((1, tile_m - 1, tile_m + 1, 3 * tile_m + 5), (True, False)):
            a = activations(m, k, dtype)
            out = torch.full((m, n), torch.nan, dtype=dtype, device="cuda")
            extra = bias if m % 2 else None
            billhook.gemm(a, weight, extra, config=config, split_k=split_k, out=out)
            ref = reference.gemm(host(a), right, host(extra))
            check(out, ref, weight, config, f"{config} m={m} n={n} k={k} split_k={split_k}")


@each_case
def test_every_tile_of_experts_is_within_its_bound(held: PackedFormat, dtype: Any, group: int) -> None:
    experts, top_k, k, n = 5, 2, 352, 208
    drawn = [draw(held, k, n, group, dtype=dtype, generator=generator(expert)) for expert in range(experts)]
    weight, right = stack_weights([one.pack() for one in drawn]), np.stack([exact(one) for one in drawn])
    bias = torch.randn(experts, n, device="cuda").to(dtype)
    for config in compiled(dtype, group, indexed=True, weights=held.name):
        for tokens in (1, config.tile.tile_m + 1, 150):
            a = activations(tokens, k, dtype)
            ids = torch.rand(tokens, experts, device="cuda").topk(top_k, dim=1).indices
            factors = torch.rand(tokens, top_k, device="cuda") if tokens > 1 else None
            extra = bias if tokens != 150 else None
            routing = billhook.route(ids, experts, config.tile.tile_m, complete=True)
            out = torch.full((tokens * top_k, n), torch.nan, dtype=dtype, device="cuda")
            billhook.moe_gemm(a, weight, routing, factors, extra, config=config, out=out)
            ref = reference.moe_gemm(host(a), right, ids.cpu(), host(factors), host(extra))
            check(out, ref, weight, config, f"{config} tokens={tokens}")


def check_identity(drawn: Drawn, dtype: Any) -> None:
    """Multiply by the identity: every weight must come back, rounded once; a sum could hide a wrong place."""
    k, _ = drawn.codes.shape
    weight = drawn.pack()
    want = exact(drawn).astype(numpy_dtype(ELEMENTS[dtype])).astype(np.float64)
    eye = torch.eye(k, device="cuda").to(dtype)
    for config in compiled(dtype, drawn.group_size, indexed=False, weights=drawn.held.name):
        got = host(billhook.gemm(eye, weight, config=config))
        assert np.array_equal(got, want), f"{config}: {np.argwhere(got != want)[:4].tolist()}"


@each_case
def test_the_identity_gives_back_every_weight_to_the_bit(held: PackedFormat, dtype: Any, group: int) -> None:
    drawn = draw(held, 352, 336, group, dtype=dtype, generator=generator())
    if drawn.global_scales is not None:
        drawn.global_scales.fill_(2.0**-9)  # a power of two: nothing is rounded before the output
    check_identity(drawn, dtype)


def _small(drawn: Drawn) -> None:
    """The smallest scales that there are: zeros and subnormals."""
    codes = torch.arange(drawn.scales.numel(), device="cuda").view(drawn.scales.shape)
    if drawn.scales.dtype == torch.uint8:
        drawn.scales.copy_(codes % 16)
    else:
        drawn.scales.copy_((codes % 32).to(torch.int16).view(drawn.scales.dtype))


def _large(drawn: Drawn) -> None:
    """Scales so large that a weight just stays within the activations' type."""
    if drawn.scales.dtype == torch.uint8:
        last = LARGEST_SCALE[drawn.held.weight] if not drawn.held.global_scale else 0x7E
        drawn.scales.copy_(
            last - torch.arange(drawn.scales.numel(), device="cuda").view(drawn.scales.shape) % 16
        )
    else:
        largest = 448 if drawn.held.weight == E4M3FN else 2**drawn.held.weight.bits
        drawn.scales.fill_(torch.finfo(drawn.scales.dtype).max / largest / 2)


@each_case
@pytest.mark.parametrize("set_scales", [_small, _large])
def test_scales_at_the_ends_of_their_range_are_exact(
    held: PackedFormat, dtype: Any, group: int, set_scales: Callable[[Drawn], None]
) -> None:
    drawn = draw(held, 128, 80, group, dtype=dtype, generator=generator())
    set_scales(drawn)
    if drawn.global_scales is not None:
        drawn.global_scales.fill_(1.0)
    check_identity(drawn, dtype)


@pytest.mark.parametrize("held", FORMATS.values(), ids=lambda held: held.name)
def test_two_hundred_random_problems_are_within_their_bound(
    held: PackedFormat, record_property: Callable[[str, object], None]
) -> None:
    """What is recorded is the largest error as a fraction of its bound: the table of docs/numerics.md."""
    draws, worst, worst_rms = random.Random(held.number), 0.0, 0.0
    for number in range(200):
        dtype = draws.choice([one for one, element in ELEMENTS.items() if element in held.activations])
        group = draws.choice(held.group_sizes)
        m, n, k = draws.randint(1, 150), 16 * draws.randint(1, 60), 16 * draws.randint(1, 90)
        k = -(-k // group) * group if held.scale and group > 0 else k
        drawn = draw(held, k, n, group, dtype=dtype, generator=generator(number))
        weight, a = drawn.pack(), activations(m, k, dtype)
        element = ELEMENTS[dtype]
        config = draws.choice(compiled(dtype, group, indexed=False, weights=held.name))
        out, ref = billhook.gemm(a, weight, config=config), reference.gemm(host(a), exact(drawn))
        check(out, ref, weight, config, f"problem {number}: {config} m={m} n={n} k={k}")
        bound = reference.error_bound(k, group, element, rounds_weights(config))
        error = np.abs(host(out) - ref.value)
        worst = max(worst, float((error / bound.allowed(ref.value, ref.magnitude, ref.activations)).max()))
        if error.size >= 256:
            worst_rms = max(worst_rms, float(np.sqrt((error**2).mean() / (ref.value**2).mean())) / bound.rms)
    record_property("worst_of_bound", round(worst, 3))
    record_property("worst_rms_of_bound", round(worst_rms, 3))
    assert worst_rms <= 1
