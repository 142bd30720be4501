"""Random problems on the GPU, and what their results must be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..config import Problem
from ..dispatch.routing import capacity
from ..dtypes import BF16
from .roofline import rows_out, weight_bytes
from .workload import Workload

if TYPE_CHECKING:
    import torch

MOST_COPIES = 24


@dataclass
class Weights:
    """One layer's quantized weights, in the plainest form; each contestant packs them its own way.

    Args:
        workload: The layer.
        codes: uint8 `[max(1, num_experts), k, n]`, 0 .. 15, all of which occur.
        scales: f16 or bf16 `[max(1, num_experts), groups, n]`.
    """

    workload: Workload
    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def experts(self) -> int:
        """Weight matrices: 1 for a dense layer."""
        return int(self.codes.shape[0])

    @cached_property
    def gptq(self) -> torch.Tensor:
        """The codes as GPTQ stores them: int32 `[experts, k / 8, n]`, code k in nibble k % 8."""
        import torch

        experts, k, n = self.codes.shape
        words = torch.zeros((experts, k // 8, n), dtype=torch.int32, device=self.codes.device)
        for nibble in range(8):
            words |= self.codes[:, nibble::8].to(torch.int32) << (4 * nibble)
        return words

    def dequantize(self, expert: int = 0) -> torch.Tensor:
        """Return one weight matrix, float32 `[k, n]`, exactly."""
        k = self.workload.k
        scales = self.scales[expert].float()
        wide = scales.repeat_interleave(-(-k // scales.shape[0]), dim=0)[:k]
        return (self.codes[expert].float() - 8) * wide


@dataclass
class Inputs:
    """What a layer is given for one token count.

    Args:
        tokens: Tokens.
        problem: The GEMM.
        a: Activations `[m, k]`.
        topk_ids: MoE: int32 `[m, top_k]`, the experts of each row of A; None for dense.
        copies: Copies of the weights that the timed calls rotate over.
    """

    tokens: int
    problem: Problem
    a: torch.Tensor
    topk_ids: torch.Tensor | None
    copies: int

    @cached_property
    def experts_hit(self) -> int:
        """Experts that have at least one row; 0 for dense."""
        return 0 if self.topk_ids is None else int(self.topk_ids.unique().numel())


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's name of "bf16" or "f16"."""
    import torch

    return torch.bfloat16 if name == BF16.name else torch.float16


def make_weights(workload: Workload, seed: int, device: torch.device) -> Weights:
    """Draw a layer's weights: uniform codes, scales that keep outputs near 1.

    Args:
        workload: The layer.
        seed: Of the random numbers.
        device: The GPU.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    experts, k, n = max(1, workload.num_experts), workload.k, workload.n
    groups = 1 if workload.group_size == -1 else -(-k // workload.group_size)
    codes = torch.randint(0, 16, (experts, k, n), dtype=torch.uint8, device=device, generator=generator)
    spread = torch.rand((experts, groups, n), device=device, generator=generator) + 0.5
    scales = spread / (4.6 * k**0.5)  # 4.6: the standard deviation of a uniform code
    return Weights(workload, codes, scales.to(torch_dtype(workload.types.s.name)))


def make_inputs(workload: Workload, tokens: int, seed: int, l2_bytes: int, device: torch.device) -> Inputs:
    """Draw activations and, for MoE, the experts of each token: distinct, uniformly at random.

    Args:
        workload: The layer.
        tokens: Tokens.
        seed: Of the random numbers, with the number of tokens.
        l2_bytes: The GPU's L2 cache.
        device: The GPU.
    """
    import torch

    problem = workload.problem(tokens)
    generator = torch.Generator(device).manual_seed(seed + 1000 * tokens + 1)
    a = torch.randn((problem.m, problem.k), device=device, generator=generator)
    topk_ids = None
    if workload.moe:
        scores = torch.rand((tokens, workload.num_experts), device=device, generator=generator)
        chosen = scores.topk(workload.top_k, dim=1).indices.to(torch.int32)
        topk_ids = chosen.reshape(problem.m, problem.top_k).contiguous()
    inputs = Inputs(tokens, problem, a.to(torch_dtype(workload.types.a.name)), topk_ids, 1)
    inputs.copies = copies_needed(weight_bytes(problem, inputs.experts_hit), l2_bytes)
    return inputs


def copies_needed(read_bytes: int, l2_bytes: int) -> int:
    """Return how many copies of the weights to rotate over so that none is still in L2 at its turn.

    Their total exceeds twice the L2 cache, unless that takes more than `MOST_COPIES`.
    """
    return min(MOST_COPIES, 2 * l2_bytes // read_bytes + 1)


def reference(weights: Weights, inputs: Inputs) -> torch.Tensor:
    """Return the float32 product, `[rows of D, n]`."""
    import torch

    if inputs.topk_ids is None:
        return inputs.a.float() @ weights.dequantize()
    shape = (rows_out(inputs.problem), inputs.problem.n)
    out = torch.empty(shape, dtype=torch.float32, device=inputs.a.device)
    for expert, rows in rows_by_expert(inputs.topk_ids):
        out[rows] = inputs.a[rows // inputs.problem.top_k].float() @ weights.dequantize(expert)
    return out


def rows_by_expert(topk_ids: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield each expert that is hit with its rows of D, in order."""
    flat = topk_ids.flatten()
    for expert in flat.unique().tolist():
        yield expert, (flat == expert).nonzero().flatten()


@dataclass(frozen=True)
class Blocks:
    """Rows of D sorted by expert, in blocks that one CTA row computes with one expert's weights.

    Args:
        sorted_token_ids: int32; rows of D, padded to whole blocks with their total number.
        expert_ids: int32, one per block; -1 for blocks not used.
        num_tokens_padded: int32 `[1]`, the used length of `sorted_token_ids`.
    """

    sorted_token_ids: torch.Tensor
    expert_ids: torch.Tensor
    num_tokens_padded: torch.Tensor


def align_blocks(topk_ids: torch.Tensor, num_experts: int, block: int) -> Blocks:
    """Sort rows into blocks; the buffers are as large as the worst routing needs, as engines have them.

    Args:
        topk_ids: The experts of each row of A.
        num_experts: Number of experts.
        block: Rows of one block.
    """
    import torch

    flat = topk_ids.flatten()
    count = flat.numel()
    blocks = capacity(count, num_experts, block)
    ids = torch.full((blocks * block,), count, dtype=torch.int32, device=flat.device)
    experts = torch.full((blocks,), -1, dtype=torch.int32, device=flat.device)
    used = 0
    for expert, rows in rows_by_expert(topk_ids):
        need = -(-rows.numel() // block)
        ids[used * block : used * block + rows.numel()] = rows.to(torch.int32)
        experts[used : used + need] = expert
        used += need
    padded = torch.tensor([used * block], dtype=torch.int32, device=flat.device)
    return Blocks(ids, experts, padded)
