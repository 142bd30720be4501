"""The operators on CUDA tensors: find the kernel, launch it on the current stream. Arguments are checked."""

from __future__ import annotations

from functools import cache

import torch

from ..config import KernelConfig, parse_name
from ..dispatch import launch
from ..dispatch.loader import GemmKernel
from ..dispatch.provider import Request, kernels
from ..dispatch.routing import capacity
from ..errors import InputError
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .kinds import KINDS
from .tensors import current_stream


def gemm_out(p: Gemm, out: torch.Tensor) -> None:
    """Compute a dense GEMM."""
    rows = p.rows
    if rows == 0:
        return
    kernel = _kernel(p.config, _request(p))
    _launch(kernel, -(-rows // kernel.config.tile.tile_m), p, p.a, out)


def moe_gemm_out(p: MoeGemm, out: torch.Tensor) -> None:
    """Compute an MoE GEMM with a given routing."""
    if not p.complete:
        out.zero_()
    rows, experts = p.rows, p.experts
    if rows == 0:
        return
    kernel = _kernel(p.config, _request(p, experts, p.top_k, p.block_m))
    blocks = capacity(rows, experts, p.block_m)
    _launch(
        kernel,
        blocks,
        p,
        _group(p, blocks) if kernel.config.grouped else p.a,
        out,
        sorted_token_ids=p.sorted_token_ids.data_ptr(),
        expert_ids=p.expert_ids.data_ptr(),
        num_tokens_padded=p.num_tokens_padded.data_ptr(),
        topk_weights=0 if p.topk_weights is None else p.topk_weights.data_ptr(),
        top_k=p.top_k,
    )


def routed(p: MoeGemmTopk) -> MoeGemm:
    """Route for the kernel that suits the problem."""
    experts = int(p.codes.shape[0])
    block_m = 1 if p.rows == 0 else _kernel(p.config, _request(p, experts, p.top_k)).config.tile.tile_m
    return p.routed(route(p.topk_ids, experts, block_m), block_m)


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


def _group(p: MoeGemm, blocks: int) -> torch.Tensor:
    """Copy the activations into the order of the routing; rows that pad a block stay uninitialized.

    Args:
        p: The MoE GEMM.
        blocks: The most blocks that its routing can have.
    """
    a = p.a
    m, k = a.shape
    grouped = a.new_empty((blocks * p.block_m, k))
    device = a.get_device()
    launch.launch_group(
        kernels().group(device),
        current_stream(device),
        a=a.data_ptr(),
        grouped=grouped.data_ptr(),
        sorted_token_ids=p.sorted_token_ids.data_ptr(),
        num_tokens_padded=p.num_tokens_padded.data_ptr(),
        rows=p.rows,
        row_bytes=k * a.itemsize,
        stride_bytes=(a.stride(0) if m > 1 else k) * a.itemsize,
        top_k=p.top_k,
    )
    return grouped


def _request(p: Gemm | MoeGemm | MoeGemmTopk, experts: int = 0, top_k: int = 0, block_m: int = 0) -> Request:
    a = p.a
    m, k = a.shape
    names = KINDS[p.format, a.dtype, p.scales.dtype].names
    return Request(a.get_device(), m, p.n, k, *names, p.group_size, experts, top_k, block_m)


def _kernel(config: str, request: Request) -> GemmKernel:
    source = kernels()
    if not config:
        return source.gemm(request)
    chosen = _parse(config)
    if chosen.group_size != request.group_size or chosen.types != request.types:
        raise InputError(f"kernel {config} is not for {request.types}, group_size {request.group_size}")
    if chosen.indexed != bool(request.num_experts) or request.block_m not in (0, chosen.tile.tile_m):
        wanted = f"MoE layers in blocks of {request.block_m}" if request.num_experts else "dense layers"
        raise InputError(f"kernel {config} is not for {wanted}")
    return source.load(chosen, request.device)


@cache
def _parse(name: str) -> KernelConfig:
    return parse_name(name)


def _launch(
    kernel: GemmKernel, tiles_m: int, p: Gemm | MoeGemm, a: torch.Tensor, out: torch.Tensor, **moe: int
) -> None:
    rows, bias, zeros, global_scales = p.rows, p.bias, p.zeros, p.global_scales
    token_scales, channel_scales = p.token_scales, p.channel_scales
    m, k = a.shape
    launch.launch_gemm(
        kernel,
        current_stream(kernel.kernel.device),
        torch.cuda.is_current_stream_capturing(),
        tiles_m,
        a=a.data_ptr(),
        codes=p.codes.data_ptr(),
        scales=p.scales.data_ptr(),
        zeros=0 if zeros is None else zeros.data_ptr(),
        global_scales=0 if global_scales is None else global_scales.data_ptr(),
        channel_scales=0 if channel_scales is None else channel_scales.data_ptr(),
        token_scales=0 if token_scales is None else token_scales.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        d=out.data_ptr(),
        m=rows,
        n=p.n,
        k=k,
        lda=a.stride(0) if m > 1 else k,
        ldd=out.stride(0) if rows > 1 else p.n,
        groups=p.scales.shape[-2],
        split_k=p.split_k,
        **moe,
    )
