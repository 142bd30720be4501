"""The operators of `torch.ops.billhook`: schemas, fake kernels, and what runs on which device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..dispatch.routing import capacity
from . import on_cpu, on_cuda
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .tensors import current_device, stands_alone

_WEIGHT = "Tensor a, Tensor codes, Tensor scales, int n, int group_size, str format"
_OPTIONS = (
    "Tensor? zeros=None, Tensor? global_scales=None, Tensor? bias=None, bool split_k=True, str config='', "
    "Tensor? token_scales=None, Tensor? channel_scales=None, ScalarType? output_dtype=None"
)
_GEMM = f"{_WEIGHT}, {_OPTIONS}"
_MOE_GEMM = (
    f"{_WEIGHT}, int top_k, Tensor sorted_token_ids, Tensor expert_ids, Tensor num_tokens_padded, "
    f"int block_m, bool complete, Tensor? topk_weights=None, {_OPTIONS}"
)
_SCHEMAS = (
    f"gemm({_GEMM}) -> Tensor",
    f"gemm_out(Tensor(x!) out, {_GEMM}) -> ()",
    f"moe_gemm({_MOE_GEMM}) -> Tensor",
    f"moe_gemm_out(Tensor(x!) out, {_MOE_GEMM}) -> ()",
    f"moe_gemm_topk({_WEIGHT}, Tensor topk_ids, Tensor? topk_weights=None, {_OPTIONS}) -> Tensor",
    "route(Tensor topk_ids, int num_experts, int block_m) -> (Tensor, Tensor, Tensor)",
    "quantize_activations(Tensor x, ScalarType dtype, Tensor? scale=None, float? number=None) "
    "-> (Tensor, Tensor)",
)

_library = torch.library.Library("billhook", "DEF")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run on the GPU of the first argument, whichever is current; the checks refuse one on the CPU."""

    def run(*arguments: Any) -> Any:
        device = arguments[0].get_device()
        if device < 0 or device == current_device():
            return function(*arguments)
        with torch.cuda.device(device):
            return function(*arguments)

    return run


def _empty_gemm(*arguments: Any) -> torch.Tensor:
    p = Gemm(*arguments)
    return p.a.new_empty((p.a.shape[0], p.n), dtype=p.output)


def _empty_moe_gemm(*arguments: Any) -> torch.Tensor:
    p = MoeGemm(*arguments)
    return p.a.new_empty((p.a.shape[0] * p.top_k, p.n), dtype=p.output)


def _empty_moe_gemm_topk(*arguments: Any) -> torch.Tensor:
    p = MoeGemmTopk(*arguments)
    return p.a.new_empty((p.topk_ids.numel(), p.n), dtype=p.output)


def _empty_routing(topk_ids: torch.Tensor, num_experts: int, block_m: int) -> tuple[torch.Tensor, ...]:
    blocks = capacity(topk_ids.numel(), num_experts, block_m)
    ids = topk_ids.new_empty(blocks * block_m, dtype=torch.int32)
    return ids, ids.new_empty(blocks), ids.new_empty(1)


def _empty_codes(
    x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None = None, number: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def _nothing(*arguments: Any) -> None:
    """Results are written into an argument."""


_FAKES: dict[str, Callable[..., Any]] = {
    "gemm": _empty_gemm,
    "gemm_out": _nothing,
    "moe_gemm": _empty_moe_gemm,
    "moe_gemm_out": _nothing,
    "moe_gemm_topk": _empty_moe_gemm_topk,
    "route": _empty_routing,
    "quantize_activations": _empty_codes,
}


def _register() -> Any:
    for schema in _SCHEMAS:
        _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    for name, function in _FAKES.items():
        _library.impl(name, getattr(on_cpu, name), "CPU")
        _library.impl(name, _guarded(getattr(on_cuda, name)), "CUDA")
        torch.library.register_fake(f"billhook::{name}", function, lib=_library)
    return torch.ops.billhook


operators = _register()


def _shortened(name: str, other: int = 1) -> Callable[..., Any]:
    """Return an operator as a function that leaves torch's dispatcher out where it has nothing to do.

    Args:
        name: The operator; its first argument is a tensor.
        other: The argument that is looked at besides: a tensor, or None.
    """
    operator, function = getattr(operators, name).default, getattr(on_cuda, name)

    def call(*arguments: Any) -> Any:
        first, second = arguments[0], arguments[other]
        second = first if second is None else second
        alone = first.is_cuda and stands_alone(first, second) and first.get_device() == current_device()
        return (function if alone else operator)(*arguments)

    return call


gemm, gemm_out = _shortened("gemm"), _shortened("gemm_out")
moe_gemm, moe_gemm_out, moe_gemm_topk = map(_shortened, ("moe_gemm", "moe_gemm_out", "moe_gemm_topk"))
quantize_activations = _shortened("quantize_activations", other=2)
