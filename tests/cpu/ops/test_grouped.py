"""Rows that lie together by expert give what each expert's dense GEMM gives."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import billhook  # noqa: E402
from billhook.errors import InputError  # noqa: E402

EXPERTS, K, N = 4, 64, 48


def problem(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weights = torch.randn(EXPERTS, K, N, generator=generator).bfloat16()
    return torch.randn(rows, K, generator=generator).bfloat16(), weights


@pytest.mark.parametrize(
    "offsets", [[0, 3, 3, 9, 12], [0, 0, 0, 0, 12], [0, 12, 12, 12, 12], [0, 1, 2, 3, 7]], ids=str
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_each_group_meets_its_expert(offsets: list[int], dtype: torch.dtype) -> None:
    a, weights = problem(12)
    bias = torch.randn(EXPERTS, N).bfloat16()
    weight = billhook.quantize_weight(weights, group_size=32)
    d = billhook.grouped_gemm(a, weight, torch.tensor(offsets, dtype=dtype), bias)
    for expert in range(EXPERTS):
        first, last = offsets[expert], offsets[expert + 1]
        dense = billhook.quantize_weight(weights[expert], group_size=32)
        assert torch.equal(d[first:last], billhook.gemm(a[first:last], dense, bias[expert]))
    assert not d[offsets[-1] :].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_groups_of_folded_weights_give_the_type_asked_for(dtype: torch.dtype) -> None:
    values, weights = problem(12)
    a, scales = billhook.quantize_activations(values)
    offsets = torch.tensor([0, 3, 3, 9, 12])
    given = {"token_scales": scales, "output_dtype": dtype}
    d = billhook.grouped_gemm(a, billhook.quantize_weight(weights, format="w4a8"), offsets, **given)
    for expert, (first, last) in enumerate(pairwise(offsets.tolist())):
        dense = billhook.quantize_weight(weights[expert], format="w4a8")
        given["token_scales"] = scales[first:last]
        assert torch.equal(d[first:last], billhook.gemm(a[first:last], dense, **given))


def test_channels_of_each_expert_have_scales_of_their_own() -> None:
    values, weights = problem(12)
    a, scales = billhook.quantize_activations(values)
    offsets, channels = torch.tensor([0, 3, 3, 9, 12]), torch.rand(EXPERTS, N)
    weight = billhook.quantize_weight(weights, group_size=-1)
    d = billhook.grouped_gemm(a, weight, offsets, token_scales=scales, channel_scales=channels)
    for expert, (first, last) in enumerate(pairwise(offsets.tolist())):
        dense = billhook.quantize_weight(weights[expert], group_size=-1)
        given = {"token_scales": scales[first:last], "channel_scales": channels[expert]}
        assert torch.equal(d[first:last], billhook.gemm(a[first:last], dense, **given))


@pytest.mark.parametrize(
    "offsets",
    [torch.zeros(EXPERTS, dtype=torch.int32), torch.zeros(EXPERTS + 1), torch.zeros(1, EXPERTS + 1).int()],
)
def test_offsets_must_be_one_more_than_experts(offsets: torch.Tensor) -> None:
    a, weights = problem(3)
    with pytest.raises(InputError, match=r"offsets must be int32 or int64 \(5,\)"):
        billhook.grouped_gemm(a, billhook.quantize_weight(weights, group_size=32), offsets)
