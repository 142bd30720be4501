"""The operators of `torch.ops.billhook`: schemas, fake kernels, and what runs on which device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from ..dispatch.routing import capacity
from . import checks, on_cpu, on_cuda
from .arguments import Gemm, MoeGemm, MoeGemmTopk

_WEIGHT = "Tensor a, Tensor codes, Tensor scales, int n, int group_size, str format"
_OPTIONS = (
    "Tensor? zeros=None, Tensor? global_scales=None, Tensor? bias=None, bool split_k=True, str config='', "
    "Tensor? token_scales=None, Tensor? channel_scales=None"
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
)

_library = torch.library.Library("billhook", "DEF")


def _implementations(device: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return operator -> function, checking arguments and allocating results around a device's own part."""

    def gemm(*arguments: Any) -> torch.Tensor:
        p = Gemm(*arguments)
        checks.check_gemm(p)
        out = p.a.new_empty((p.rows, p.n), dtype=p.output)
        device.gemm_out(p, out)
        return out

    def gemm_out(out: torch.Tensor, *arguments: Any) -> None:
        p = Gemm(*arguments)
        checks.check_gemm(p)
        checks.check_output(p, out)
        device.gemm_out(p, out)

    def moe_gemm(*arguments: Any) -> torch.Tensor:
        p = MoeGemm(*arguments)
        checks.check_moe_gemm(p)
        out = p.a.new_empty((p.rows, p.n), dtype=p.output)
        device.moe_gemm_out(p, out)
        return out

    def moe_gemm_out(out: torch.Tensor, *arguments: Any) -> None:
        p = MoeGemm(*arguments)
        checks.check_moe_gemm(p)
        checks.check_output(p, out)
        device.moe_gemm_out(p, out)

    def moe_gemm_topk(*arguments: Any) -> torch.Tensor:
        p = MoeGemmTopk(*arguments)
        checks.check_topk(p)
        return moe_gemm(*device.routed(p))

    def route(topk_ids: torch.Tensor, num_experts: int, block_m: int) -> Any:
        checks.check_topk_ids(topk_ids, num_experts, block_m)
        return device.route(topk_ids, num_experts, block_m)

    return {
        "gemm": gemm,
        "gemm_out": gemm_out,
        "moe_gemm": moe_gemm,
        "moe_gemm_out": moe_gemm_out,
        "moe_gemm_topk": moe_gemm_topk,
        "route": route,
    }


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run on the GPU of the first argument, whichever is current; the checks refuse one on the CPU."""

    def run(first: torch.Tensor, *rest: Any) -> Any:
        if not first.is_cuda or first.device.index == torch.cuda.current_device():
            return function(first, *rest)
        with torch.cuda.device(first.device):
            return function(first, *rest)

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


def _nothing(*arguments: Any) -> None:
    """Results are written into an argument."""


_FAKES: dict[str, Callable[..., Any]] = {
    "gemm": _empty_gemm,
    "gemm_out": _nothing,
    "moe_gemm": _empty_moe_gemm,
    "moe_gemm_out": _nothing,
    "moe_gemm_topk": _empty_moe_gemm_topk,
    "route": _empty_routing,
}


def _register() -> Any:
    for schema in _SCHEMAS:
        _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    for name, function in _implementations(on_cpu).items():
        _library.impl(name, function, "CPU")
    for name, function in _implementations(on_cuda).items():
        _library.impl(name, _guarded(function), "CUDA")
    for name, function in _FAKES.items():
        torch.library.register_fake(f"billhook::{name}", function, lib=_library)
    return torch.ops.billhook


operators = _register()
