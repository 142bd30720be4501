"""GEMM, MoE GEMM and routing as functions of packed weights.

They call the operators of `torch.ops.billhook`: on CUDA tensors a kernel is launched
on the current stream, on CPU tensors a float32 reference answers. All can be captured
into CUDA graphs and traced by torch.compile. With gradients off, torch's dispatcher is
left out where it would do nothing but pass the arguments on; its profiler then sees the
kernel alone. The kernel is chosen by the bundle's dispatch table or the catalog's rules;
`config` overrides that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..config import KernelConfig
from ..dispatch.provider import Request, kernels
from ..errors import InputError, UnsupportedError, WeightError
from . import library
from .kinds import Kind, find_kind
from .weight import PackedWeight

_HOST_BLOCK_M = 16  # where there is no kernel to choose: any is right on the CPU


@dataclass(frozen=True, eq=False)
class Routing:
    """(token, slot) rows sorted by the expert they visit; both GEMMs of an MoE layer may share one.

    Args:
        sorted_token_ids: int32 row numbers in blocks of `block_m`; `rows` is padding.
        expert_ids: int32, the expert of each block.
        num_tokens_padded: int32 [1], the used length of sorted_token_ids.
        rows: tokens * top_k.
        top_k: Experts that each token visits.
        num_experts: Number of experts.
        block_m: Rows of one block; the kernels that use it take as many rows at a time.
        complete: Whether every row has an expert; if not, outputs are cleared first.
    """

    sorted_token_ids: torch.Tensor
    expert_ids: torch.Tensor
    num_tokens_padded: torch.Tensor
    rows: int
    top_k: int
    num_experts: int
    block_m: int
    complete: bool = False


def gemm(
    a: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    *,
    token_scales: torch.Tensor | None = None,
    channel_scales: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    config: KernelConfig | str | None = None,
    split_k: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply activations by a packed weight: D = A @ W + bias.

    Args:
        a: [m, k] of one of the weight's `dtypes`; rows dense, 16-byte aligned. Also int8 for u4b8, u4
            and u8b128 weights, and float8_e4m3fn for u4b8, u4, fp8, mxfp4 and w4a8 ones, as
            `quantize_activations` gives them.
        weight: A dense packed weight.
        bias: [n] of D's type, or None.
        token_scales: float32 [m], [m, 1] or a single one, of 8-bit activations; else None.
        channel_scales: float32 [n], multiplied into the columns of A @ W besides the weight's own, with 8-bit
            activations; or None. w4a8 weights have theirs, and take no others.
        output_dtype: Type of D where the weight leaves it open (w4a8), float16 or bfloat16; that of `out` or
            `weight.dtype` if None.
        config: A kernel or its name; chosen for the problem if None.
        split_k: Whether several CTAs may share an output tile. With False and a fixed `config`, a row's
            result does not depend, to the bit, on the other rows given with it.
        out: Where D goes, [m, n] of D's type, rows dense; a new tensor if None.

    Returns:
        D [m, n], float32 sums rounded once, of a's type; of `weight.dtype` for 8-bit activations unless
        another is asked for.

    Raises:
        WeightError: A tensor does not fit: dtype, device, shape, strides, alignment or packing.
        UnsupportedError: No kernel serves the problem on this GPU.
    """
    check_operands(a, weight, moe=False)
    scales = (None if token_scales is None else _token_scales(token_scales, a), channel_scales)
    wanted = _output_type(weight, output_dtype, out)
    arguments = (*_weight(a, weight), *_options(weight, bias, split_k, config, scales, output_dtype=wanted))
    if out is None:
        return library.gemm(*arguments)
    library.gemm_out(out, *arguments)
    return out


def moe_gemm(
    a: torch.Tensor,
    weight: PackedWeight,
    routing: Routing | torch.Tensor,
    topk_weights: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    token_scales: torch.Tensor | None = None,
    channel_scales: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    config: KernelConfig | str | None = None,
    split_k: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply each token by the weights of the experts it visits: D = (A @ W + bias) * topk_weight.

    The second GEMM of an MoE layer takes the first one's rows: `a` then has one row per
    (token, slot), and the routing is the same.

    Args:
        a: [tokens, k], or [tokens * top_k, k], of a type that `gemm` takes.
        weight: A packed MoE weight.
        routing: What `route` gave; or the expert ids [tokens, top_k] themselves, routed on the way.
        topk_weights: float32 [tokens, top_k] or [tokens * top_k], multiplied into the rows; or None.
        bias: [num_experts, n] of D's type, or None.
        token_scales: float32, one for each row of 8-bit activations, or a single one; else None.
        channel_scales: float32 [num_experts, n], as in `gemm`; or None.
        output_dtype: As in `gemm`.
        config: A kernel or its name; its tile_m must be the routing's block_m.
        split_k: As in `gemm`.
        out: Where D goes, with a `Routing` only; a new tensor if None.

    Returns:
        D [tokens * top_k, n]; rows whose expert id is outside the experts (such as -1) are zeros, unless
        the routing was said to be complete.

    Raises:
        WeightError: As `gemm`.
        UnsupportedError: As `gemm`.
        InputError: `out` without a `Routing`, or a routing that does not fit.
    """
    check_operands(a, weight, moe=True)
    scales = (None if token_scales is None else _token_scales(token_scales, a), channel_scales)
    wanted = _output_type(weight, output_dtype, out)
    head, options = _weight(a, weight), _options(weight, bias, split_k, config, scales, output_dtype=wanted)
    if not isinstance(routing, Routing):
        if not isinstance(routing, torch.Tensor):
            raise InputError(
                "routing must be what billhook.route gave, or a torch.Tensor of expert ids "
                f"(got {type(routing).__name__})"
            )
        if out is not None:
            raise InputError("out needs a Routing; call billhook.route first")
        return library.moe_gemm_topk(*head, routing, topk_weights, *options)
    if routing.num_experts != weight.num_experts:
        raise InputError(f"routing is for {routing.num_experts} experts, the weight has {weight.num_experts}")
    tokens = routing.rows // routing.top_k
    if a.shape[0] not in (tokens, routing.rows):
        raise InputError(
            f"activations must have {tokens} rows (tokens) or {routing.rows} rows (token, slot) "
            f"for this routing (got {a.shape[0]})"
        )
    top_k = routing.top_k if a.shape[0] == tokens else 1
    sorting = (routing.sorted_token_ids, routing.expert_ids, routing.num_tokens_padded)
    arguments = (*head, top_k, *sorting, routing.block_m, routing.complete, topk_weights, *options)
    if out is None:
        return library.moe_gemm(*arguments)
    library.moe_gemm_out(out, *arguments)
    return out


def route(topk_ids: torch.Tensor, num_experts: int, block_m: int, *, complete: bool = False) -> Routing:
    """Sort (token, slot) rows by the expert they visit, in blocks that each belong to one expert.

    Args:
        topk_ids: int32 or int64 [tokens, top_k]; ids outside the experts are dropped.
        num_experts: 1 to 1024.
        block_m: Rows of one block; `moe_block_m` tells what suits a weight.
        complete: Promise that no id is outside the experts; saves clearing the outputs.

    Raises:
        InputError: A wrong dtype or shape, or num_experts or block_m out of range.
    """
    ids, experts, length = library.operators.route.default(topk_ids, num_experts, block_m)
    return Routing(ids, experts, length, topk_ids.numel(), topk_ids.shape[1], num_experts, block_m, complete)


def moe_block_m(
    weight: PackedWeight,
    tokens: int,
    top_k: int,
    dtype: torch.dtype | None = None,
    output_dtype: torch.dtype | None = None,
) -> int:
    """Return the `block_m` that suits `moe_gemm` of this weight best.

    Args:
        weight: A packed MoE weight.
        tokens: Number of tokens, at least 1.
        top_k: Experts that each token visits.
        dtype: Type of the activations; if None, `weight.dtype` or what the weight is multiplied by instead.
        output_dtype: As in `gemm`.

    Raises:
        UnsupportedError: No kernel serves the problem on the weight's GPU.
        WeightError: The weight is not multiplied by such activations.
    """
    usual = weight.dtype if weight.dtype in weight.dtypes else weight.dtypes[0]
    kind = find_kind(weight.format, dtype or usual, weight.scales.dtype, output_dtype)
    if kind is None:
        raise WeightError(
            f"activations of {weight} must be {' or '.join(map(str, weight.dtypes))} (got {dtype}, for D of "
            f"{output_dtype or 'the usual type'})"
        )
    if weight.device.type != "cuda":
        return _HOST_BLOCK_M
    return kernels().choose(_request(weight, kind, tokens, top_k)).tile.tile_m


def why_unserved(
    weight: PackedWeight, dtype: torch.dtype, output_dtype: torch.dtype | None = None, top_k: int = 1
) -> str | None:
    """Return why no kernel multiplies a weight by activations of a type on its device; None if one does.

    Args:
        weight: A packed weight.
        dtype: Type of the activations.
        output_dtype: Type of the output; the usual one if None.
        top_k: Experts that each row visits, which bundles tell apart; of a dense weight it is not looked at.
    """
    kind = find_kind(weight.format, dtype, weight.scales.dtype, output_dtype)
    if kind is None:
        wanted = "" if output_dtype is None else f" for {output_dtype} outputs"
        return f"{weight.format} weights are not multiplied by {dtype}{wanted}"
    if weight.device.type != "cuda":
        return None
    try:
        kernels().choose(_request(weight, kind, 1, top_k if weight.num_experts else 0))
    except UnsupportedError as error:
        return str(error)
    return None


def _request(weight: PackedWeight, kind: Kind, tokens: int, top_k: int) -> Request:
    return Request(
        weight.device.index,
        tokens,
        weight.n,
        weight.k,
        *kind.names,
        weight.group_size,
        weight.num_experts,
        top_k,
    )


def check_operands(a: torch.Tensor, weight: PackedWeight, moe: bool) -> None:
    """Check that activations and weight are such, and go together.

    Args:
        a: Activations, as a caller gave them, like the weight.
        weight: A packed weight.
        moe: Whether it must hold experts.

    Raises:
        WeightError: They are not, or do not.
    """
    if not isinstance(a, torch.Tensor):
        raise WeightError(f"activations must be a torch.Tensor (got {type(a).__name__})")
    if not isinstance(weight, PackedWeight):
        raise WeightError(
            f"weight must be a billhook.PackedWeight (got {type(weight).__name__}); pack_weight makes one"
        )
    if moe and weight.num_experts == 0:
        raise WeightError("the weight is dense; use gemm")
    if not moe and weight.num_experts != 0:
        raise WeightError("the weight holds experts; use moe_gemm")
    if a.shape[-1:] != (weight.k,):
        raise WeightError(f"activations must be [m, {weight.k}], as the weight's k is (got {tuple(a.shape)})")


def _weight(a: torch.Tensor, weight: PackedWeight) -> tuple[Any, ...]:
    """Return the arguments that every operator takes first."""
    return a, weight.codes, weight.scales, weight.n, weight.group_size, weight.format


def _token_scales(scales: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return one scale for each row of A, also where one serves all."""
    if scales.numel() == a.shape[0] or scales.numel() != 1:
        return scales
    return scales.reshape(1).expand(a.shape[0]).contiguous()


def _output_type(
    weight: PackedWeight, asked: torch.dtype | None, out: torch.Tensor | None
) -> torch.dtype | None:
    """Return the type of D as it is asked for, by a name or by where it goes; None if it is not."""
    return out.dtype if asked is None and out is not None and weight.channel_scales is not None else asked


def _options(
    weight: PackedWeight,
    bias: torch.Tensor | None,
    split_k: bool,
    config: KernelConfig | str | None,
    scales: tuple[torch.Tensor | None, torch.Tensor | None],
    *,
    output_dtype: torch.dtype | None,
) -> tuple[Any, ...]:
    """Return the arguments that every operator takes last, but for defaults at their end.

    Args:
        weight: The packed weight.
        bias: As the caller gave it, like the next two.
        split_k: See `gemm`.
        config: See `gemm`.
        scales: Those of tokens, one for each row of A, and those of channels.
        output_dtype: Type of D; None for the usual one.

    Raises:
        WeightError: Channel scales beside the weight's own.
    """
    zeros, global_scales = weight.zeros, weight.global_scales
    for_tokens, for_channels = scales
    if weight.channel_scales is not None:
        if for_channels is not None:
            raise WeightError(
                f"{weight.format} weights have channel_scales of their own; "
                "multiply those by others before the weight is packed"
            )
        for_channels = weight.channel_scales
    asked = () if output_dtype is None else (output_dtype,)
    if for_tokens is not None or for_channels is not None or not split_k or config is not None or asked:
        name = config.name if isinstance(config, KernelConfig) else config or ""
        return (zeros, global_scales, bias, split_k, name, for_tokens, for_channels, *asked)
    if zeros is None and global_scales is None and bias is None:
        return ()
    return (zeros, global_scales, bias)
