"""GEMM of rows that lie together by expert."""

from __future__ import annotations

import torch

from ..config import KernelConfig
from ..errors import InputError
from .operators import check_operands, moe_gemm
from .weight import PackedWeight


def grouped_gemm(
    a: torch.Tensor,
    weight: PackedWeight,
    offsets: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    token_scales: torch.Tensor | None = None,
    channel_scales: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    config: KernelConfig | str | None = None,
    split_k: bool = True,
) -> torch.Tensor:
    """Multiply contiguous groups of rows, each by the weights of its expert.

    Nothing is read back to the host, so a graph captured with it follows the offsets' values.

    Args:
        a: [rows, k], of a type that `gemm` takes; rows `offsets[e]` to `offsets[e + 1] - 1` are expert e's.
        weight: A packed MoE weight.
        offsets: int32 or int64 [num_experts + 1] on a's device, ascending from 0; not checked, since that
            would wait for the GPU. An expert without rows has two equal ones.
        bias: [num_experts, n] of D's type, or None.
        token_scales: As in `moe_gemm`.
        channel_scales: As in `moe_gemm`.
        output_dtype: As in `gemm`.
        config: A kernel or its name; chosen for the problem if None.
        split_k: As in `gemm`.

    Returns:
        D [rows, n], in the order of a; rows from `offsets[-1]` on are zeros.

    Raises:
        InputError: Offsets of a wrong dtype, shape or device.
        WeightError, UnsupportedError: As `moe_gemm`.
    """
    check_operands(a, weight, moe=True)
    if not isinstance(offsets, torch.Tensor):
        raise InputError(f"offsets must be a torch.Tensor (got {type(offsets).__name__})")
    want = (weight.num_experts + 1,)
    if offsets.dtype not in (torch.int32, torch.int64) or tuple(offsets.shape) != want:
        shape = tuple(offsets.shape)
        raise InputError(f"offsets must be int32 or int64 {want} (got {offsets.dtype} {shape})")
    if offsets.device != a.device:
        raise InputError(f"offsets are on {offsets.device}, activations on {a.device}")
    rows = torch.arange(a.shape[0], dtype=offsets.dtype, device=a.device)
    experts = torch.searchsorted(offsets[1:], rows, right=True, out_int32=True)
    return moe_gemm(
        a,
        weight,
        experts[:, None],
        None,
        bias,
        token_scales=token_scales,
        channel_scales=channel_scales,
        output_dtype=output_dtype,
        config=config,
        split_k=split_k,
    )
