"""vLLM's Marlin: dense products and indexed MoE, weights of every format but u8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...dtypes import BF16, E4M3FN, E8M0FNU
from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights, align_blocks, torch_dtype
from ..workload import Workload
from .marlin_layout import Packed, pack
from .vllm import SCALAR_TYPES, load, read_version

if TYPE_CHECKING:
    import torch

MOE_BLOCKS = (8, 16, 32, 48, 64)
SMALLEST_NARROW_BLOCK = 16  # with 8-bit activations


class Marlin:
    """Dense Marlin, and Marlin MoE for layers with experts."""

    name = "marlin"

    def version(self) -> str:
        """Return vLLM's release."""
        return read_version()

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Repack the codes and order the scales, as vLLM does when it loads a checkpoint."""
        import torch

        load("_C.abi3.so")
        layer, device = weights.workload, weights.codes.device
        why = _unserved(layer)
        if why is not None:
            raise UnsupportedError(why)
        first = pack(weights)
        packed = [first, *(first.clone() for _ in range(max(case.copies for case in cases) - 1))]
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        # As vLLM allocates it: one lock per CTA, up to four CTAs per multiprocessor for MoE.
        workspace = torch.zeros(sms * (4 if layer.moe else 1), dtype=torch.int32, device=device)
        if not layer.moe:
            return _bind_dense(layer, packed, workspace)
        load("_moe_C.abi3.so")
        return _bind_moe(layer, packed, workspace)


def _unserved(layer: Workload) -> str | None:
    """Return why vLLM 0.20.2 has no Marlin kernel for a layer; None if it has."""
    types, name = layer.types, layer.held.name
    if name == "u8":
        return "no kernel for u8 weights with zero points"
    if types.s == E8M0FNU and types.c != BF16:
        return f"{name} weights with bf16 activations only"
    if types.a == E4M3FN:
        return "its kernels for e4m3 activations are for SM89 and SM120"
    if types.a.bits == 8 and name not in ("u4", "u4b8"):
        return f"no {types.a} x {name}: u4 and u4b8 weights only"
    if layer.n % 64 or layer.k % 128:
        return f"refused shape: n must be a multiple of 64, k of 128 (got {layer.n} x {layer.k})"
    return None


def _bind_dense(layer: Workload, packed: Sequence[Packed], workspace: torch.Tensor) -> Bind:
    kind = SCALAR_TYPES[layer.types.b]

    def bind(inputs: Inputs) -> Launch:
        import torch

        none = torch.empty(0, dtype=torch.int32, device=inputs.a.device)
        token_scales = _token_scales(inputs, packed[0])

        def call(copy: int) -> torch.Tensor:
            one = packed[copy]
            return torch.ops._C.marlin_gemm(
                inputs.a,
                None,  # output: allocated
                one.codes[0],
                None,  # bias
                one.scales[0],
                token_scales,
                one.global_scales,
                one.zeros[0] if one.zeros.numel() else none,
                none,  # group index (act order)
                none,  # its permutation
                workspace,
                kind,
                inputs.problem.m,
                layer.n,
                layer.k,
                True,  # all of k is here
                False,  # atomic add: vLLM's default
                True,  # reduce in float32
                False,  # float zero points
            )

        return Launch(call, "marlin_gemm")

    return bind


def _bind_moe(layer: Workload, packed: Sequence[Packed], workspace: torch.Tensor) -> Bind:
    kind = SCALAR_TYPES[layer.types.b]

    def bind(inputs: Inputs) -> Launch:
        import torch

        problem, device = inputs.problem, inputs.a.device
        if inputs.topk_ids is None:
            raise UnsupportedError("needs routed tokens")
        block = moe_block(problem.rows_per_expert, SMALLEST_NARROW_BLOCK if problem.types.a.bits == 8 else 0)
        blocks = align_blocks(inputs.topk_ids, problem.num_experts, block)
        rows = inputs.topk_ids.numel()
        # Read only if the product is multiplied by them.
        topk_weights = torch.ones(inputs.topk_ids.shape, dtype=torch.float32, device=device)
        token_scales = _token_scales(inputs, packed[0])

        def call(copy: int) -> torch.Tensor:
            one = packed[copy]
            out = torch.empty((rows, layer.n), dtype=torch_dtype(problem.types.c), device=device)
            return torch.ops._moe_C.moe_wna16_marlin_gemm(
                inputs.a,
                out,
                one.codes,
                None,  # bias
                one.scales,
                token_scales,
                one.global_scales,
                one.zeros if one.zeros.numel() else None,
                None,  # group index (act order)
                None,  # its permutation
                workspace,
                blocks.sorted_token_ids,
                blocks.expert_ids,
                blocks.num_tokens_padded,
                topk_weights,
                block,
                problem.top_k,
                False,  # multiply by top-k weights
                kind,
                problem.m,
                layer.n,
                layer.k,
                True,  # all of k is here
                False,  # atomic add: vLLM's default
                True,  # reduce in float32
                False,  # float zero points
                -1,  # thread_k: its own choice
                -1,  # thread_n
                -1,  # CTAs per multiprocessor
            )

        return Launch(call, f"moe_wna16_marlin_gemm block {block}")

    return bind


def _token_scales(inputs: Inputs, packed: Packed) -> torch.Tensor | None:
    return None if inputs.token_scales is None else inputs.token_scales * packed.token_factor


def moe_block(rows_per_expert: float, smallest: int = 0) -> int:
    """Return the block of rows that vLLM chooses: the smallest that a mean expert fills by less than 0.9.

    Args:
        rows_per_expert: Rows of a mean expert.
        smallest: The smallest block that the kernels have.
    """
    wanted = next((block for block in MOE_BLOCKS if rows_per_expert / block < 0.9), MOE_BLOCKS[-1])
    return max(wanted, smallest)
