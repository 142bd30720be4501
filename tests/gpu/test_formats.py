"""Every weight format on the GPU: every tile, all codes, odd shapes, scales at the ends of their range.

Every tile runs in every format; which types of activations and which groups it gets there rotates. All
types and groups in all tiles are in test_gemm.py and test_moe.py, for u4b8.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from gpu.problems import ELEMENTS, check, compile_all, host, multiply, tiles  # noqa: E402

import billhook  # noqa: E402
from billhook.config import KernelConfig  # noqa: E402
from billhook.dtypes import BF16, E2M1F, E4M3FN  # noqa: E402
from billhook.families import rounds_weights  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.formats.elements import numpy_dtype  # noqa: E402
from billhook.measure.machine import find_commit  # noqa: E402
from billhook.ops.drawn import Drawn, draw  # noqa: E402
from billhook.ops.weight import stack_weights  # noqa: E402
from billhook.weights import FORMATS, PackedFormat  # noqa: E402

DEVICE = "cuda"
WIDE = [held for held in FORMATS.values() if held.activations]  # the others are in test_activations.py
CASES = [
    {"held": held, "dtype": dtype, "group": group}
    for held in WIDE
    for dtype, element in ELEMENTS.items()
    if element in held.activations
    for group in held.group_sizes
]
each_case = pytest.mark.parametrize(
    ("held", "dtype", "group"),
    [tuple(case.values()) for case in CASES],
    ids=[f"{case['held'].name}-{ELEMENTS[case['dtype']]}-{case['group']}" for case in CASES],
)
each_format = pytest.mark.parametrize("held", WIDE, ids=lambda held: held.name)
LARGEST_SCALE = {E2M1F: 252, E4M3FN: 246}  # e8m0 code beyond which a weight exceeds bf16
MOE_SHARE = 3  # an MoE tile runs in one format of so many: what differs between formats, dense ones show
PROBLEMS = 240  # random ones of each format


@cache
def chosen(held: PackedFormat, dtype: Any, group: int, indexed: bool) -> list[KernelConfig]:
    """Return a case's tiles: one of so many as its format has cases, the next format's begin one later."""
    cases = [case for case in CASES if case["held"] == held]
    place = cases.index({"held": held, "dtype": dtype, "group": group})
    found = list(enumerate(tiles(dtype, group, indexed, held.name), held.number))
    if indexed:
        found = found[held.number % MOE_SHARE :: MOE_SHARE]
    return [config for number, config in found if number % len(cases) == place]


@pytest.fixture(scope="module", autouse=True)
def compile_together(
    request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Compile what the selected tests run at once: by itself, no case has enough for all cores."""
    record_testsuite_property("gpu", torch.cuda.get_device_name())
    record_testsuite_property("torch", torch.__version__)
    record_testsuite_property("commit", find_commit())
    mine = [item for item in request.session.items if item.path == request.path]
    params = [item.callspec.params for item in mine if hasattr(item, "callspec")]
    wanted = [
        case
        for case in CASES
        if any(all(one.get(key, value) == value for key, value in case.items()) for one in params)
    ]
    found = (chosen(**case, indexed=indexed) for case in wanted for indexed in (False, True))
    compile_all(dict.fromkeys(itertools.chain.from_iterable(found)))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def generator(seed: int = 0) -> Any:
    return torch.Generator(DEVICE).manual_seed(seed)


def activations(m: int, k: int, dtype: Any) -> Any:
    return torch.randn(m, k, device=DEVICE).to(dtype)


def exact(drawn: Drawn) -> Any:
    """Return all weights [k, n] in float64."""
    return drawn.exact(torch.arange(drawn.codes.shape[1], device=DEVICE))


@each_case
def test_every_tile_is_within_its_bound(held: PackedFormat, dtype: Any, group: int) -> None:
    for n, k in ((208, 352), (512, 1024)):
        drawn = draw(held, k, n, group, dtype=dtype, generator=generator())
        weight, right, bias = drawn.pack(), exact(drawn), activations(1, n, dtype)[0]
        for config in chosen(held, dtype, group, indexed=False):
            tile_m = config.tile.tile_m
            for m, split_k in itertools.product((1, tile_m - 1, 3 * tile_m + 5), (True, False)):
                a = activations(m, k, dtype)
                out = torch.full((m, n), torch.nan, dtype=dtype, device=DEVICE)
                extra = bias if m % 2 else None
                billhook.gemm(a, weight, extra, config=config, split_k=split_k, out=out)
                what = f"{config} m={m} n={n} k={k} split_k={split_k}"
                check(out, multiply(a, right, extra), weight, config, what)


@each_case
def test_every_tile_of_experts_is_within_its_bound(held: PackedFormat, dtype: Any, group: int) -> None:
    experts, top_k, k, n = 5, 2, 352, 208
    drawn = [draw(held, k, n, group, dtype=dtype, generator=generator(expert)) for expert in range(experts)]
    weight = stack_weights([one.pack() for one in drawn])
    right = torch.stack([exact(one) for one in drawn]).cpu().numpy()
    bias = torch.randn(experts, n, device=DEVICE).to(dtype)
    for config in chosen(held, dtype, group, indexed=True):
        for tokens in (1, config.tile.tile_m + 1, 150):
            a = activations(tokens, k, dtype)
            ids = torch.rand(tokens, experts, device=DEVICE).topk(top_k, dim=1).indices
            factors = torch.rand(tokens, top_k, device=DEVICE) if tokens > 1 else None
            extra = bias if tokens != 150 else None
            routing = billhook.route(ids, experts, config.tile.tile_m, complete=True)
            out = torch.full((tokens * top_k, n), torch.nan, dtype=dtype, device=DEVICE)
            billhook.moe_gemm(a, weight, routing, factors, extra, config=config, out=out)
            ref = reference.moe_gemm(host(a), right, ids.cpu(), host(factors), host(extra))
            check(out, ref, weight, config, f"{config} tokens={tokens}")


def check_identity(drawn: Drawn, dtype: Any) -> None:
    """Multiply by the identity: every weight must come back, rounded once; a sum could hide a wrong place."""
    k, _ = drawn.codes.shape
    weight = drawn.pack()
    want = host(exact(drawn)).astype(numpy_dtype(ELEMENTS[dtype])).astype(np.float64)
    eye = torch.eye(k, device=DEVICE).to(dtype)
    for config in chosen(drawn.held, dtype, drawn.group_size, indexed=False):
        got = host(billhook.gemm(eye, weight, config=config))
        assert np.array_equal(got, want), f"{config}: {np.argwhere(got != want)[:4].tolist()}"


@each_case
def test_the_identity_gives_back_every_weight_to_the_bit(held: PackedFormat, dtype: Any, group: int) -> None:
    drawn = draw(held, 352, 336, group, dtype=dtype, generator=generator())
    if drawn.global_scales is not None:
        drawn.global_scales.fill_(2.0**-9)  # a power of two: nothing is rounded before the output
    check_identity(drawn, dtype)


def set_small_scales(drawn: Drawn) -> None:
    """Give a weight the smallest scales that there are: zeros and subnormals."""
    codes = torch.arange(drawn.scales.numel(), device=DEVICE).view(drawn.scales.shape)
    if drawn.scales.dtype == torch.uint8:
        drawn.scales.copy_(codes % 16)
    else:
        drawn.scales.copy_((codes % 32).to(torch.int16).view(drawn.scales.dtype))


def set_large_scales(drawn: Drawn) -> None:
    """Give a weight scales so large that it just stays within the activations' type."""
    if drawn.scales.dtype == torch.uint8:
        last = LARGEST_SCALE[drawn.held.weight] if not drawn.held.global_scale else 0x7E
        drawn.scales.copy_(
            last - torch.arange(drawn.scales.numel(), device=DEVICE).view(drawn.scales.shape) % 16
        )
    else:
        largest = 448 if drawn.held.weight == E4M3FN else 2**drawn.held.weight.bits
        drawn.scales.fill_(torch.finfo(drawn.scales.dtype).max / largest / 2)


@each_case
@pytest.mark.parametrize("set_scales", [set_small_scales, set_large_scales])
def test_scales_at_the_ends_of_their_range_are_exact(
    held: PackedFormat, dtype: Any, group: int, set_scales: Callable[[Drawn], None]
) -> None:
    drawn = draw(held, 128, 80, group, dtype=dtype, generator=generator())
    set_scales(drawn)
    if drawn.global_scales is not None:
        drawn.global_scales.fill_(1.0)
    check_identity(drawn, dtype)


@each_case
def test_what_is_not_finite_stays_in_its_row(held: PackedFormat, dtype: Any, group: int) -> None:
    """No format has infinities; activations do: an infinity times a weight, NaN where that is zero."""
    k, n = 352, 208
    drawn = draw(held, k, n, group, dtype=dtype, generator=generator())
    weight, a = drawn.pack(), activations(9, k, dtype)
    for config in chosen(held, dtype, group, indexed=False):
        clean = billhook.gemm(a, weight, config=config)
        spoilt = a.clone()
        spoilt[2, 100], spoilt[4, k - 1], spoilt[7, 0] = torch.inf, -torch.inf, torch.nan
        got = billhook.gemm(spoilt, weight, config=config)
        others = [0, 1, 3, 5, 6, 8]
        assert torch.equal(got[others], clean[others]), f"{config}"
        signs = exact(drawn)[[100, k - 1]].sign() * torch.tensor([[1.0], [-1.0]], device=DEVICE)
        want = torch.where(signs == 0, torch.nan, signs * torch.inf)
        assert torch.equal(got[[2, 4]].double().nan_to_num(0.5), want.nan_to_num(0.5)), f"{config}"
        assert got[7].isnan().all(), f"{config}"


@dataclass
class Errors:
    """Errors of several problems with outputs of one type.

    Args:
        kernel: Mean square error of each, relative to the mean square of its result.
        plain: The same of weights rounded to that type, multiplied in float32 and rounded once.
    """

    kernel: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    def means(self) -> tuple[float, float]:
        """Return both root mean squares over the problems."""
        return float(np.mean(self.kernel)) ** 0.5, float(np.mean(self.plain)) ** 0.5


def choose_problems(held: PackedFormat) -> Iterator[tuple[int, KernelConfig, Any, int, int, int, int]]:
    """Yield number, kernel, type of activations, group, m, n and k."""
    draws = random.Random(held.number)
    cases = [case for case in CASES if case["held"] == held]
    for number in range(PROBLEMS):
        case = draws.choice(cases)
        group = case["group"]
        config = draws.choice(chosen(**case, indexed=False))
        m = draws.randint(1, 2 * config.tile.tile_m + 30)
        n, k = 16 * draws.randint(1, 60), 16 * draws.randint(1, 90)
        if held.scale and group > 0:
            k = -(-k // group) * group
        yield number, config, case["dtype"], group, m, n, k


def scaled_activations(m: int, right: Any, dtype: Any) -> Any:
    """Return activations with zeros, small and large numbers among them, for outputs of about 1.

    Args:
        m: Rows.
        right: The exact weights.
        dtype: Type of the activations.
    """
    k = right.shape[0]
    a = torch.randn(m, k, device=DEVICE, dtype=torch.float64)
    kind = torch.randint(0, 16, (m, k), device=DEVICE)
    a[kind == 0] = 0
    a[kind == 1] *= 2.0**-12
    size = float(right.square().mean()) * k
    most = 110 if ELEMENTS[dtype] == BF16 else 12
    exponent = 0 if size == 0 else round(-np.log2(size) / 2)
    return (a * 2.0 ** min(most, max(-most, exponent))).to(dtype)


def mean_square_error(out: Any, value: np.ndarray) -> float:
    """Return the mean square error relative to the mean square."""
    return float(np.square(host(out) - value).mean() / np.square(value).mean())


@each_format
def test_random_problems_are_within_their_bound(
    held: PackedFormat, record_property: Callable[[str, object], None]
) -> None:
    """What is recorded fills the table of docs/numerics.md, bench/errors.py writes it.

    Every sixth problem has the smallest scales that there are, every sixth other the largest.
    """
    worst, worst_rms = 0.0, 0.0
    errors = {element: Errors() for element in held.activations}
    kernels = set()
    for number, config, dtype, group, m, n, k in choose_problems(held):
        drawn = draw(held, k, n, group, dtype=dtype, generator=generator(number))
        extreme = {4: set_small_scales, 5: set_large_scales}.get(number % 6)
        if extreme is not None:
            extreme(drawn)
        weight, right = drawn.pack(), exact(drawn)
        a = scaled_activations(m, right, dtype)
        out, ref = billhook.gemm(a, weight, config=config), multiply(a, right)
        what = f"problem {number}: {config} m={m} n={n} k={k}{f' {extreme.__name__}' if extreme else ''}"
        check(out, ref, weight, config, what)
        kernels.add(config)
        element = ELEMENTS[dtype]
        bound = reference.error_bound(k, group, element, rounds_weights(config))
        allowed = bound.allowed(ref.value, ref.magnitude, ref.activations)
        worst = max(worst, float((np.abs(host(out) - ref.value) / allowed).max()))
        if extreme is None and ref.value.size >= 256:
            plain = (a.float() @ right.to(dtype).float()).to(dtype)
            errors[element].kernel.append(mean_square_error(out, ref.value))
            errors[element].plain.append(mean_square_error(plain, ref.value))
            worst_rms = max(worst_rms, errors[element].kernel[-1] ** 0.5 / bound.rms)
    record_property("problems", PROBLEMS)
    record_property("kernels", len(kernels))
    record_property("worst_of_bound", round(worst, 3))
    record_property("worst_rms_of_bound", round(worst_rms, 3))
    for element, found in errors.items():
        mine, plain = found.means()
        record_property(f"error_{element}", f"{mine:.5f}")
        record_property(f"plain_error_{element}", f"{plain:.5f}")
        assert mine <= 1.05 * plain, f"{element}: {mine:.5f} against {plain:.5f}"
    assert worst_rms <= 1
