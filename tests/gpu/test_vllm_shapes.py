"""Shapes and tolerances of vLLM's own tests of Machete and of its fused MoE.

Machete: every documented type, group size and schedule, through the documented operators. Fused MoE: every
format, through two GEMMs that share a routing, with and without experts that live elsewhere.

Source: vLLM, tests/kernels/quantization/test_machete_mm.py and tests/kernels/moe/test_moe.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from gpu.problems import compile_all  # noqa: E402

import billhook  # noqa: E402
from billhook.config import GemmTypes  # noqa: E402
from billhook.dtypes import ALL  # noqa: E402
from billhook.formats.blocks import count_groups  # noqa: E402
from billhook.ops import PackedWeight, stack_weights  # noqa: E402
from billhook.ops.drawn import draw  # noqa: E402
from billhook.ops.tensors import DTYPES, ELEMENTS  # noqa: E402
from billhook.vllm.machete.schedules import schedule_kernel, schedules  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

MACHETE_SHAPES = (  # m, n, k
    (1, 128, 128),
    (1, 8192, 28672),
    (13, 8192, 4096),
    (26, 4096, 8192),
    (64, 4096, 4096),
    (64, 8192, 28672),
    (257, 128, 4096),
    (257, 4224, 4160),
    (1024, 8192, 4096),
)
MOE_SHAPES = (  # m, n, k, experts, top_k, expert-parallel size
    (1, 128, 256, 5, 2, 1),
    (1, 1024, 2048, 5, 2, 1),
    (133, 256, 256, 5, 2, 1),
    (133, 1024, 2048, 12, 3, 1),
    (128, 256, 256, 5, 2, 1),
    (128, 1024, 2048, 12, 3, 1),
    (64, 1024, 2048, 12, 3, 4),
)
FLOATS = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _needs_wgmma() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of 9.0, where wgmma is")


class Checkpoint(NamedTuple):
    """A weight as vLLM holds it, and its float32 values [k, n]."""

    words: Any
    scales: Any
    zeros: Any
    values: Any


def draw_checkpoint(name: str, n: int, k: int, group: int, dtype: Any) -> Checkpoint:
    weight, groups = ALL[name], count_groups(k, group)
    codes = torch.randint(0, 2**weight.bits, (k, n), dtype=torch.uint8, device="cuda")
    scales = ((torch.rand(groups, n, device="cuda") + 0.5) / 2**weight.bits).to(dtype)
    zeros, points = None, torch.full((groups, n), weight.bias, dtype=torch.uint8, device="cuda")
    if weight.zero_point:
        points = torch.randint_like(points, 2**weight.bits)
        zeros = -1 * scales * points.to(dtype)
    of_row = torch.arange(k, device="cuda") // (k if group == -1 else group)
    values = (codes.float() - points.float()[of_row]) * scales.float()[of_row]
    return Checkpoint(pack_words(codes, weight.bits), scales, zeros, values)


def pack_words(codes: Any, bits: int) -> Any:
    """Pack codes along k into int32 words, lowest bits first, in column-major order as vLLM does."""
    each = 32 // bits
    parts = codes.view(-1, each, codes.shape[1]).int()
    words = parts[:, 0].clone()
    for place in range(1, each):
        words |= parts[:, place] << place * bits
    return words.t().contiguous().t()


@pytest.mark.usefixtures("_needs_wgmma")
@pytest.mark.parametrize("group", [-1, 64, 128])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["u4b8", "u8b128", "u4", "u8"])
def test_every_schedule_of_machete_is_within_vllms_tolerance(name: str, dtype: Any, group: int) -> None:
    element = ELEMENTS[dtype]
    types = GemmTypes(element, ALL[name], element, element)
    kernels = {each: schedule_kernel(schedule, types, group) for each, schedule in schedules().items()}
    compile_all({config for config, why_not in kernels.values() if why_not is None})
    zeros_type = dtype if ALL[name].zero_point else None
    supported = billhook.machete_supported_schedules(dtype, name, dtype, zeros_type, None, None, dtype)
    assert supported == [each for each, (_, why_not) in kernels.items() if why_not is None]
    for m, n, k in MACHETE_SHAPES:
        held = draw_checkpoint(name, n, k, group, dtype)
        b = billhook.machete_prepack_B(held.words, dtype, name, dtype)
        a = (torch.rand(m, k, device="cuda") - 0.5).to(dtype)
        want = (a.float() @ held.values).to(dtype)
        for schedule in (None, *supported):
            got = billhook.machete_mm(
                a,
                b,
                name,
                out_type=dtype,
                b_group_scales=held.scales,
                b_group_zeros=held.zeros,
                b_group_size=group,
                schedule=schedule,
            )
            torch.testing.assert_close(
                got,
                want,
                rtol=0.1,
                atol=min(0.05 * k**0.5, 1),
                msg=lambda text, at=(m, n, k, schedule): f"m, n, k, schedule = {at}: {text}",
            )


@pytest.mark.usefixtures("_needs_wgmma")
def test_machete_refuses_what_it_documents() -> None:
    held = draw_checkpoint("u4b8", 128, 256, 128, torch.float16)
    b = billhook.machete_prepack_B(held.words, torch.float16, "u4b8", torch.float16)
    a = torch.rand(4, 256, device="cuda", dtype=torch.float16)
    given = {"b_group_scales": held.scales, "b_group_size": 128}
    with pytest.raises(billhook.errors.UnsupportedError, match="does not exist; for"):
        billhook.machete_mm(a, b, "u4b8", **given, schedule="32x32_1x1x1_TmaMI_TmaCoop_streamK")
    with pytest.raises(billhook.errors.UnsupportedError, match="tile_n and tile_k must be multiples of 64"):
        billhook.machete_mm(a, b, "u4b8", **given, schedule="32x32_1x1x1_TmaMI__TmaCoop_streamK")
    with pytest.raises(billhook.errors.InputError, match="m at least 1"):
        billhook.machete_mm(a[:0], b, "u4b8", **given)
    with pytest.raises(billhook.errors.WeightError, match="multiples of 16 bytes"):
        billhook.machete_mm(torch.rand(4, 257, device="cuda", dtype=torch.float16)[:, 1:], b, "u4b8", **given)
    with pytest.raises(billhook.errors.WeightError, match="machete_prepack_B"):
        billhook.machete_mm(a, held.words, "u4b8", **given)


def formats() -> list[Any]:
    """Every format with the activations and group sizes that it has, the usual group size first."""
    return [
        pytest.param(name, DTYPES[a], group, id=f"{name}-{a}-g{group}")
        for name, held in FORMATS.items()
        for a in held.activations
        for group in held.group_sizes
    ]


def draw_experts(name: str, size: tuple[int, int, int], group: int, dtype: Any) -> tuple[PackedWeight, Any]:
    """Return a packed MoE weight of (experts, n, k) and its float32 values [experts, k, n]."""
    count, n, k = size
    generator, columns = torch.Generator("cuda").manual_seed(n + k), torch.arange(n, device="cuda")
    drawn = [draw(FORMATS[name], k, n, group, dtype=dtype, generator=generator) for _ in range(count)]
    values = torch.stack([one.exact(columns).float() for one in drawn])
    return stack_weights([one.pack() for one in drawn]), values


def combine(rows: Any, top_k: int) -> Any:
    return rows.view(-1, top_k, rows.shape[1]).sum(dim=1)


@pytest.mark.parametrize(("name", "dtype", "group"), formats())
def test_a_fused_moe_layer_is_within_vllms_tolerance(name: str, dtype: Any, group: int) -> None:
    """w13, SiLU and product, w2: outputs of about one, as in vLLM's test, within 4e-2."""
    usual = group == FORMATS[name].group_sizes[0]
    for m, n, k, experts, top_k, parts in MOE_SHAPES:
        if not usual and n * k > 256 * 256:
            continue
        local = experts // parts  # this GPU's experts are the first ones; the others' rows are zeros here
        w13, w13_values = draw_experts(name, (local, 2 * n, k), group, dtype)
        w2, w2_values = draw_experts(name, (local, k, n), group, dtype)
        a = torch.randn(m, k, device="cuda")
        a = (a / (a @ w13_values[0]).std()).to(dtype)
        chosen = torch.randn(m, experts, device="cuda").softmax(dim=-1).topk(top_k)
        ids = torch.where(chosen.indices < local, chosen.indices, -1)
        second = 1 / w2_values.std().item() / n**0.5 / 2  # brings outputs to about one half
        routing = billhook.route(ids, local, billhook.moe_block_m(w13, m, top_k, dtype))
        gate, up = billhook.moe_gemm(a, w13, routing).chunk(2, dim=1)
        inner = (torch.nn.functional.silu(gate.float()) * up.float() * second).to(dtype)
        got = combine(billhook.moe_gemm(inner, w2, routing, chosen.values), top_k)

        want = torch.zeros(m, k, device="cuda")
        for slot in range(top_k):
            for expert in range(local):
                rows = ids[:, slot] == expert
                gate, up = (a[rows].float() @ w13_values[expert]).to(dtype).chunk(2, dim=1)
                inner = (torch.nn.functional.silu(gate.float()) * up.float() * second).to(dtype)
                out = inner.float() @ w2_values[expert]
                want[rows] += out * chosen.values[rows, slot, None]
        torch.testing.assert_close(
            got.float(),
            want,
            rtol=0,
            atol=4e-2,
            msg=lambda text, at=(m, n, k, experts, top_k, parts): (
                f"m, n, k, experts, top_k, ep = {at}: {text}"
            ),
        )
