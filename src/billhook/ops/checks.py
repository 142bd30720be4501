"""What the operators ask of their tensors; each refusal names the value and the remedy."""

from __future__ import annotations

import torch

from ..dispatch.launch import MAX_EXPERTS
from ..dispatch.routing import capacity
from ..errors import InputError, WeightError
from ..formats.packed import find_format
from ..weights import FORMATS
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .kinds import KINDS
from .tensors import DTYPES, NARROW_DTYPES

_SMALLEST_SCALE = 2.0**-149  # above 0 in float32


def check_gemm(p: Gemm) -> None:
    """Check the tensors of a dense GEMM.

    Raises:
        WeightError: Wrong dtype, device, shape, strides or alignment.
    """
    _check_operands(p)
    if p.bias is not None:
        _check_extra("bias", p.bias, p.a, p.n, p.output)


def check_moe_gemm(p: MoeGemm) -> None:
    """Check the tensors of an MoE GEMM.

    Raises:
        WeightError: As `check_gemm`.
        InputError: The routing has too little room.
    """
    _check_operands(p)
    if p.bias is not None:
        _check_extra("bias", p.bias, p.a, p.experts * p.n, p.output)
    if p.topk_weights is not None:
        _check_extra("topk_weights", p.topk_weights, p.a, p.rows, torch.float32)
    for tensor in (p.sorted_token_ids, p.expert_ids, p.num_tokens_padded):
        if tensor.dtype != torch.int32 or tensor.device != p.a.device or not tensor.is_contiguous():
            raise InputError(f"routing must be contiguous int32 on {p.a.device}, as billhook.route makes it")
    blocks = capacity(p.rows, p.experts, p.block_m)
    if p.sorted_token_ids.shape[0] < blocks * p.block_m or p.expert_ids.shape[0] < blocks:
        raise InputError(f"routing has room for {p.expert_ids.shape[0]} blocks; {p.rows} rows need {blocks}")


def check_topk(p: MoeGemmTopk) -> None:
    """Check the expert ids against the activations; the rest is checked once it is routed.

    Raises:
        InputError: They have other tokens, are not on the same device, or as `check_topk_ids`.
    """
    check_topk_ids(p.topk_ids, int(p.codes.shape[0]), 1)
    if p.topk_ids.shape[0] != p.a.shape[0] or p.topk_ids.device != p.a.device:
        raise InputError(
            f"topk_ids must be [{p.a.shape[0]}, top_k] on {p.a.device} "
            f"(got {tuple(p.topk_ids.shape)} on {p.topk_ids.device})"
        )


def check_topk_ids(topk_ids: torch.Tensor, num_experts: int, block_m: int) -> None:
    """Check the arguments of routing.

    Args:
        topk_ids: int32 or int64 [tokens, top_k].
        num_experts: 1 to 1024.
        block_m: At least 1.

    Raises:
        InputError: A wrong dtype or shape, or a number out of range.
    """
    if topk_ids.dtype not in (torch.int32, torch.int64) or topk_ids.dim() != 2:
        raise InputError(
            f"topk_ids must be int32 or int64 [tokens, top_k] (got {topk_ids.dtype} {tuple(topk_ids.shape)})"
        )
    if not 1 <= num_experts <= MAX_EXPERTS:
        raise InputError(f"num_experts must be 1 to {MAX_EXPERTS} (got {num_experts})")
    if block_m < 1:
        raise InputError(f"block_m must be at least 1 (got {block_m})")


def check_quantization(
    x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None, number: float | None
) -> None:
    """Check the arguments of quantizing activations.

    Args:
        x: Floating point [tokens, k].
        dtype: float8_e4m3fn or int8.
        scale: A static scale on the device of `x`.
        number: A static scale, positive.

    Raises:
        WeightError: A wrong type, shape, device or number, or both scales.
    """
    if dtype not in NARROW_DTYPES.values():
        known = " or ".join(map(str, NARROW_DTYPES.values()))
        raise WeightError(f"activations are quantized to {known} (got {dtype})")
    if x.dim() != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise WeightError(f"x must be floating point [tokens, k] (got {x.dtype} {tuple(x.shape)})")
    if scale is not None and number is not None:
        raise WeightError(f"one static scale is enough (got a tensor, and {number})")
    if scale is not None and (scale.numel() != 1 or scale.device != x.device):
        raise WeightError(
            f"a static scale must be one number on {x.device} (got {tuple(scale.shape)} on {scale.device})"
        )
    if number is not None and not _SMALLEST_SCALE <= number <= torch.finfo(torch.float32).max:
        raise WeightError(f"a static scale must be positive and finite in float32 (got {number})")


def _check_operands(p: Gemm | MoeGemm) -> None:
    a, scales = p.a, p.scales
    kind = KINDS.get((p.format, a.dtype, scales.dtype, p.output))
    if kind is None:
        _refuse_types(p)
        return
    device = a.get_device()
    if p.codes.get_device() != device or scales.get_device() != device:
        raise WeightError(f"activations are on {a.device}, the weight on {p.codes.device}")
    if (p.zeros is None) == kind.zeros or (p.global_scales is None) == kind.global_scales:
        raise WeightError(
            f"{p.format} weights lack or have too many zeros or global_scales; pass PackedWeight's"
        )
    if a.dim() != 2:
        raise WeightError(f"activations must be [m, k] (got shape {tuple(a.shape)}); use .reshape(-1, k)")
    rows, k = a.shape
    between, step = a.stride()
    apart = rows < 2 or (between >= k and between * a.itemsize % 16 == 0)
    if step != 1 or not apart or a.data_ptr() % 16:
        raise WeightError(
            "activations must have dense rows of their own that begin at multiples of 16 bytes (got shape "
            f"{tuple(a.shape)}, strides {a.stride()}, address {a.data_ptr():#x}); use .contiguous()"
        )
    if k % 16 or -(-k // 64) != p.codes.shape[kind.block_axis]:
        raise WeightError(f"activations have k={k}, the weight {p.codes.shape[kind.block_axis]} blocks of 64")
    if kind.channel_scales and p.channel_scales is None:
        raise WeightError(f"{p.format} weights need channel_scales; pass PackedWeight's")
    if kind.narrow:
        _check_narrow(p)
    elif p.token_scales is not None or p.channel_scales is not None:
        raise WeightError(
            f"token_scales and channel_scales are for float8_e4m3fn or int8 activations (got {a.dtype})"
        )


def _check_narrow(p: Gemm | MoeGemm) -> None:
    """Check what stands beside 8-bit activations."""
    scales, a = p.token_scales, p.a
    if scales is None:
        raise WeightError(
            f"{a.dtype} activations need token_scales; billhook.quantize_activations makes both"
        )
    if scales.dtype != torch.float32 or scales.device != a.device or scales.numel() != a.shape[0]:
        raise WeightError(
            f"token_scales must hold {a.shape[0]} elements of torch.float32 on {a.device} "
            f"(got {tuple(scales.shape)} of {scales.dtype} on {scales.device})"
        )
    if not scales.is_contiguous():
        raise WeightError("token_scales must be contiguous; use .contiguous()")
    if p.channel_scales is not None:
        features = p.n * (p.experts if isinstance(p, MoeGemm) else 1)
        _check_extra("channel_scales", p.channel_scales, a, features, torch.float32, alignment=16)


def _refuse_types(p: Gemm | MoeGemm) -> None:
    """Say which activations multiply the weight, or which types D may have."""
    held = find_format(p.format)
    known = [str(key[3]) for key in KINDS if key[:3] == (p.format, p.a.dtype, p.scales.dtype)]
    if known:
        raise WeightError(
            f"{p.a.dtype} activations and {p.format} weights give {' or '.join(known)} "
            f"(asked for {p.output_dtype})"
        )
    narrow = next((one for one, dtype in NARROW_DTYPES.items() if dtype == p.a.dtype), None)
    if narrow is not None and narrow not in held.narrow_activations:
        taking = ", ".join(one.name for one in FORMATS.values() if narrow in one.narrow_activations)
        raise WeightError(f"{p.a.dtype} activations multiply {taking} weights (got {p.format})")
    if held.folded:
        names = " or ".join(str(NARROW_DTYPES[one]) for one in held.narrow_activations)
        raise WeightError(
            f"{p.format} weights, whose scales are folded, are multiplied by {names} activations alone (got "
            f"{p.a.dtype}); quantize_activations makes them, and u4b8 weights take 16 bits"
        )
    if held.scale is None:
        raise WeightError(f"activations must be {p.scales.dtype} like the weight's scales (got {p.a.dtype})")
    names = " or ".join(str(DTYPES[one]) for one in held.activations)
    raise WeightError(
        f"activations of {p.format} weights must be {names}, scales uint8 (got {p.a.dtype}, {p.scales.dtype})"
    )


def check_output(p: Gemm | MoeGemm, d: torch.Tensor) -> None:
    """Check where the caller wants the result.

    Raises:
        WeightError: Wrong dtype, device, shape, strides or alignment.
    """
    a, rows, n = p.a, p.rows, p.n
    if d.dtype != p.output or d.device != a.device or d.shape != (rows, n):
        raise WeightError(
            f"out must be {p.output} [{rows}, {n}] on {a.device} "
            f"(got {d.dtype} {tuple(d.shape)} on {d.device})"
        )
    if d.stride(1) != 1 or (rows > 1 and (d.stride(0) % 8 or d.stride(0) < n)) or d.data_ptr() % 16:
        raise WeightError(f"out must have dense rows at multiples of 16 bytes (strides {d.stride()})")


def _check_extra(
    name: str, extra: torch.Tensor, like: torch.Tensor, count: int, dtype: torch.dtype, *, alignment: int = 8
) -> None:
    if extra.dtype != dtype or extra.device != like.device or extra.numel() != count:
        raise WeightError(
            f"{name} must hold {count} elements of {dtype} on {like.device} "
            f"(got {tuple(extra.shape)} of {extra.dtype} on {extra.device})"
        )
    if not extra.is_contiguous() or extra.data_ptr() % alignment:
        raise WeightError(
            f"{name} must be contiguous and {alignment}-byte aligned; use .contiguous() or .clone()"
        )
