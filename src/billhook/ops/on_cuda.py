"""The operators on CUDA tensors: find the prepared call, launch it on the current stream."""

from __future__ import annotations

from typing import Any

import torch

from ..dispatch import launch, quantizing
from ..dispatch.provider import kernels
from ..dispatch.routing import capacity
from ..dtypes import F32, DType
from . import checks
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .calls import find_call, find_kernel, request
from .tensors import ELEMENTS, NARROW_DTYPES, current_stream

_QUANTIZED: dict[torch.dtype, DType] = {**ELEMENTS, torch.float32: F32}  # what kernels take
_CODES: dict[torch.dtype, DType] = {dtype: element for element, dtype in NARROW_DTYPES.items()}


def gemm(*arguments: Any) -> torch.Tensor:
    """Compute a dense GEMM."""
    call = find_call(Gemm, arguments, None)
    out = call.empty(arguments[0])
    call.run(arguments, out)
    return out


def gemm_out(out: torch.Tensor, *arguments: Any) -> None:
    """Compute a dense GEMM into `out`."""
    find_call(Gemm, arguments, out).run(arguments, out)


def moe_gemm(*arguments: Any) -> torch.Tensor:
    """Compute an MoE GEMM with a given routing."""
    call = find_call(MoeGemm, arguments, None)
    out = call.empty(arguments[0])
    call.run(arguments, out)
    return out


def moe_gemm_out(out: torch.Tensor, *arguments: Any) -> None:
    """Compute an MoE GEMM with a given routing into `out`."""
    find_call(MoeGemm, arguments, out).run(arguments, out)


def moe_gemm_topk(*arguments: Any) -> torch.Tensor:
    """Route for the kernel that suits the problem, and compute an MoE GEMM."""
    p = MoeGemmTopk(*arguments)
    checks.check_topk(p)
    experts = int(p.codes.shape[0])
    block_m = 1
    if p.rows:
        block_m = find_kernel(p.config, request(p, experts, p.top_k)).config.tile.tile_m
    return moe_gemm(*p.routed(_route(p.topk_ids, experts, block_m), block_m))


def route(
    topk_ids: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort rows by expert; what lies beyond the used length is unspecified.

    Args:
        topk_ids: The expert of each row, on the GPU.
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
    """Quantize activations.

    Args:
        x: [tokens, k], floating point; taken as float32.
        dtype: float8_e4m3fn or int8.
        scale: A static scale on the GPU.
        number: A static scale.

    Returns:
        Codes and scales, as in `activations.quantize_activations`.
    """
    checks.check_quantization(x, dtype, scale, number)
    x = x if x.dtype in _QUANTIZED else x.float()
    x = x if x.stride(1) == 1 else x.contiguous()
    (rows, k), stride = x.shape, x.stride(0) * x.itemsize
    codes, scales = x.new_empty((rows, k), dtype=dtype), x.new_empty((rows, 1), dtype=torch.float32)
    if rows == 0:
        return codes, scales
    given = None if scale is None else scale.float()
    device, address = x.get_device(), x.data_ptr()
    quantizing.launch_quantize(
        kernels().quantize(f"quantize_{_QUANTIZED[x.dtype]}_{_CODES[dtype]}", device),
        current_stream(device),
        x=address,
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        given=0 if given is None else given.data_ptr(),
        stride_bytes=stride,
        rows=rows,
        k=k,
        number=number or 0.0,
        aligned=(address | stride | k * x.itemsize) % quantizing.CHUNK == 0,
    )
    return codes, scales


def _route(
    topk_ids: torch.Tensor, num_experts: int, block_m: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = topk_ids.numel()
    blocks = capacity(rows, num_experts, block_m)
    ids = topk_ids.to(torch.int32).contiguous()
    if ids.data_ptr() % 16:
        ids = ids.clone()
    sorted_token_ids = ids.new_empty(blocks * block_m)
    expert_ids, num_tokens_padded = ids.new_empty(blocks), ids.new_empty(1)
    device = ids.device.index
    launch.launch_route(
        kernels().route(device),
        current_stream(device),
        topk_ids=ids.data_ptr(),
        count=rows,
        num_experts=num_experts,
        block_m=block_m,
        sorted_token_ids=sorted_token_ids.data_ptr(),
        expert_ids=expert_ids.data_ptr(),
        num_tokens_padded=num_tokens_padded.data_ptr(),
    )
    return sorted_token_ids, expert_ids, num_tokens_padded
