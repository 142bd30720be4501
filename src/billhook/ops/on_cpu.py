"""The operators on CPU tensors; GEMMs are computed in float32 and rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dispatch import routing
from ..formats import host
from ..formats.packed import PackedArrays, find_format
from . import checks
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .tensors import from_numpy, to_numpy

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_SMALLEST_EXPONENT, _FRACTION_BITS = -6, 3  # of e4m3's normal numbers


def gemm(*arguments: Any) -> torch.Tensor:
    """Compute a dense GEMM."""
    p = Gemm(*arguments)
    checks.check_gemm(p)
    out = p.a.new_empty((p.rows, p.n), dtype=p.output)
    _multiply(p, out)
    return out


def gemm_out(out: torch.Tensor, *arguments: Any) -> None:
    """Compute a dense GEMM into `out`."""
    p = Gemm(*arguments)
    checks.check_gemm(p)
    checks.check_output(p, out)
    _multiply(p, out)


def moe_gemm(*arguments: Any) -> torch.Tensor:
    """Compute an MoE GEMM with a given routing."""
    p = MoeGemm(*arguments)
    checks.check_moe_gemm(p)
    out = p.a.new_empty((p.rows, p.n), dtype=p.output)
    _multiply_experts(p, out)
    return out


def moe_gemm_out(out: torch.Tensor, *arguments: Any) -> None:
    """Compute an MoE GEMM with a given routing into `out`."""
    p = MoeGemm(*arguments)
    checks.check_moe_gemm(p)
    checks.check_output(p, out)
    _multiply_experts(p, out)


def moe_gemm_topk(*arguments: Any) -> torch.Tensor:
    """Route in blocks of one row, and compute an MoE GEMM."""
    p = MoeGemmTopk(*arguments)
    checks.check_topk(p)
    return moe_gemm(*p.routed(_route(p.topk_ids, int(p.codes.shape[0]), block_m=1), block_m=1))


def route(
    topk_ids: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort rows by expert; what lies beyond the used length is unspecified, here padding.

    Args:
        topk_ids: The expert of each row.
        num_experts: Number of experts.
        block_m: Rows of one block.

    Returns:
        sorted_token_ids, expert_ids and num_tokens_padded, as in `operators.Routing`.
    """
    checks.check_topk_ids(topk_ids, num_experts, block_m)
    return _route(topk_ids, num_experts, block_m)


def quantize_activations(
    x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None, number: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize activations; what the GPU's kernel does, to the bit.

    Args:
        x: [tokens, k], floating point; taken as float32.
        dtype: float8_e4m3fn or int8.
        scale: A static scale.
        number: A static scale.

    Returns:
        Codes and scales, as in `activations.quantize_activations`.
    """
    checks.check_quantization(x, dtype, scale, number)
    values = x.contiguous().float()
    if scale is not None:
        scales = scale.float().reshape(1, 1).repeat(x.shape[0], 1)
    elif number is not None:
        scales = torch.full((x.shape[0], 1), number, dtype=torch.float32, device=x.device)
    else:
        largest = values.abs().amax(dim=1, keepdim=True).double()
        scales = (largest / _LARGEST[dtype]).float()
    # In float64 the quotient of two float32 numbers falls on no tie that is none.
    steps = torch.where(scales == 0, 0.0, values.double() / scales.double())
    if dtype == torch.int8:
        return steps.round().clamp(-128, 127).to(dtype), scales
    exponent = torch.frexp(steps).exponent - 1
    spacing = torch.ldexp(torch.ones_like(steps), exponent.clamp(min=_SMALLEST_EXPONENT) - _FRACTION_BITS)
    rounded = (steps / spacing).round() * spacing
    return rounded.clamp(-_LARGEST[dtype], _LARGEST[dtype]).float().to(dtype), scales


def _multiply(p: Gemm, out: torch.Tensor) -> None:
    result = _activations(p) @ _weight(p)
    out.copy_(result if p.bias is None else result + p.bias.float())


def _multiply_experts(p: MoeGemm, out: torch.Tensor) -> None:
    result = torch.zeros(p.rows, p.n)
    blocks = int(p.num_tokens_padded) // p.block_m
    experts = p.expert_ids[:blocks].repeat_interleave(p.block_m)
    ids = p.sorted_token_ids[: blocks * p.block_m].long()
    activations = _activations(p)
    for expert in experts.unique().tolist():
        mine = ids[(experts == expert) & (ids < p.rows)]
        product = activations[mine // p.top_k] @ _weight(p, expert)
        result[mine] = product if p.bias is None else product + p.bias.view(-1, p.n)[expert].float()
    out.copy_(result if p.topk_weights is None else result * p.topk_weights.reshape(-1, 1))


def _route(
    topk_ids: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = topk_ids.numel()
    blocks = routing.capacity(rows, num_experts, block_m)
    token_ids, experts, length = routing.route(topk_ids.numpy(), num_experts, block_m)
    sorted_token_ids = torch.full((blocks * block_m,), rows, dtype=torch.int32)
    expert_ids = torch.full((blocks,), -1, dtype=torch.int32)
    sorted_token_ids[:length] = torch.from_numpy(token_ids)
    expert_ids[: len(experts)] = torch.from_numpy(experts)
    return sorted_token_ids, expert_ids, torch.tensor([length], dtype=torch.int32)


def _activations(p: Gemm | MoeGemm) -> torch.Tensor:
    """Return the activations times their scales, float32."""
    return p.a.float() if p.token_scales is None else p.a.float() * p.token_scales.view(-1, 1)


def _weight(p: Gemm | MoeGemm, expert: int | None = None) -> torch.Tensor:
    """Return one dequantized weight, float32 [k, n]."""

    def read(tensor: torch.Tensor) -> npt.NDArray[Any]:
        return to_numpy(tensor if expert is None else tensor[expert])

    whole = None if p.global_scales is None else to_numpy(p.global_scales)
    channels = None if p.channel_scales is None else p.channel_scales.view(-1, p.n)[expert or 0]
    folded = find_format(p.format).folded
    packed = PackedArrays(
        p.format,
        read(p.codes).view(np.uint32),
        read(p.scales),
        p.n,
        int(p.a.shape[1]),
        p.group_size,
        zeros=None if p.zeros is None else read(p.zeros),
        global_scales=whole if whole is None or expert is None else whole[expert : expert + 1],
        channel_scales=None if channels is None or not folded else to_numpy(channels),
    )
    weight = from_numpy(host.dequantize(host.unpack(packed)))
    return weight if channels is None or folded else weight * channels
