"""Random problems on the GPU, and what their results must be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..config import Problem
from ..dispatch.routing import capacity
from ..dtypes import BF16, E4M3FN, E8M0FNU, F16, DType
from ..formats.blocks import count_groups
from ..formats.minifloat import decode
from ..formats.mx import SCALE_BIAS
from .roofline import rows_out, weight_bytes
from .workload import Workload

if TYPE_CHECKING:
    import torch

MOST_COPIES = 24
NAN_CODE = 0x7F  # of e4m3, beside its sign
HALF, TWO = 0x30, 0x40  # codes of e4m3


@dataclass
class Weights:
    """One layer's quantized weights, in the plainest form; each contestant packs them its own way.

    Args:
        workload: The layer.
        codes: uint8 `[max(1, num_experts), k, n]`; every code that stands for a number occurs.
        scales: `[max(1, num_experts), groups, n]`, f16 or bf16; uint8 codes of e8m0 and e4m3 scales.
        zeros: Zero points, uint8 `[max(1, num_experts), groups, n]`, or None.
        global_scales: float32 `[max(1, num_experts)]`, or None.
        channel_scales: float32 `[max(1, num_experts), n]`, beside scales that are folded, or None.
    """

    workload: Workload
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    global_scales: torch.Tensor | None = None
    channel_scales: torch.Tensor | None = None

    @property
    def experts(self) -> int:
        """Weight matrices: 1 for a dense layer."""
        return int(self.codes.shape[0])

    @cached_property
    def words(self) -> torch.Tensor:
        """The codes as GPTQ stores them: int32 `[experts, k * bits / 32, n]`, lowest bits first along k."""
        return pack_words(self.codes, self.workload.types.b.bits)

    @cached_property
    def numbers(self) -> torch.Tensor:
        """What each code stands for before zero points and scales, float32 `[2 ** bits]`."""
        import torch

        return torch.from_numpy(numbers_of(self.workload.types.b)).to(self.codes.device)

    def factors(self, expert: int = 0) -> torch.Tensor:
        """Return one weight matrix's scales as numbers, float32 `[groups, n]`, without the global one."""
        import torch

        scales, kind = self.scales[expert], self.workload.types.s
        if kind == E8M0FNU:
            return torch.ldexp(torch.ones_like(scales, dtype=torch.float32), scales.int() - SCALE_BIAS)
        return scales.view(torch.float8_e4m3fn).float() if kind == E4M3FN else scales.float()

    def dequantize(self, expert: int = 0) -> torch.Tensor:
        """Return one weight matrix, float32 `[k, n]`, exactly."""
        if self.channel_scales is not None:
            return self.fold(expert).float() * self.channel_scales[expert]
        return self._multiply(expert)

    def fold(self, expert: int = 0) -> torch.Tensor:
        """Return one weight matrix without channel scales: codes times scales, rounded to float8_e4m3fn."""
        from ..ops.tensors import round_e4m3

        return round_e4m3(self._multiply(expert))

    def _multiply(self, expert: int) -> torch.Tensor:
        k, factors = self.workload.k, self.factors(expert)
        if self.global_scales is not None:
            factors = factors * self.global_scales[expert]
        span = -(-k // factors.shape[0])
        numbers = self.numbers[self.codes[expert].int()]
        if self.zeros is not None:
            numbers -= self.zeros[expert].float().repeat_interleave(span, dim=0)[:k]
        return numbers * factors.repeat_interleave(span, dim=0)[:k]


@dataclass
class Inputs:
    """What a layer is given for one token count.

    Args:
        tokens: Tokens.
        problem: The GEMM.
        a: Activations `[m, k]`.
        topk_ids: MoE: int32 `[m, top_k]`, the experts of each row of A; None for dense.
        copies: Copies of the weights that the timed calls rotate over.
        token_scales: float32 `[m, 1]` of 8-bit activations, or None.
    """

    tokens: int
    problem: Problem
    a: torch.Tensor
    topk_ids: torch.Tensor | None
    copies: int
    token_scales: torch.Tensor | None = None

    @cached_property
    def experts_hit(self) -> int:
        """Experts that have at least one row; 0 for dense."""
        return 0 if self.topk_ids is None else int(self.topk_ids.unique().numel())

    @cached_property
    def values(self) -> torch.Tensor:
        """The activations as numbers, float32 `[m, k]`."""
        return self.a.float() if self.token_scales is None else self.a.float() * self.token_scales


def torch_dtype(element: DType) -> torch.dtype:
    """Return torch's name of an element type of activations."""
    import torch

    names = {F16: torch.float16, BF16: torch.bfloat16, E4M3FN: torch.float8_e4m3fn}
    return names.get(element, torch.int8)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes along the last axis but one into int32 words, the lowest bits first.

    Args:
        codes: uint8 `[.., k, n]`; k a multiple of the codes in a word.
        bits: Of a code: 4 or 8.
    """
    import torch

    *head, k, n = codes.shape
    per_word = 32 // bits
    words = torch.zeros((*head, k // per_word, n), dtype=torch.int32, device=codes.device)
    for place in range(per_word):
        words |= codes[..., place::per_word, :].to(torch.int32) << (bits * place)
    return words


def numbers_of(weight: DType) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return what each code of a weight type stands for, float32; NaN where it stands for nothing."""
    codes = np.arange(2**weight.bits)
    numbers = codes - float(weight.bias) if weight.kind == "int" else decode(codes.astype(np.uint8), weight)
    return numbers.astype(np.float32)


def make_weights(workload: Workload, seed: int, device: torch.device) -> Weights:
    """Draw a layer's weights: uniform codes, scales that keep outputs near 1.

    Scales of groups under 8-bit activations are powers of two: libraries that round a weight times
    its scale to 8 bits then compute the same product as those that scale sums.

    Args:
        workload: The layer.
        seed: Of the random numbers.
        device: The GPU.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    weight, held, k, n = workload.types.b, workload.held, workload.k, workload.n
    experts, groups = max(1, workload.num_experts), count_groups(workload.k, workload.group_size)

    def integers(low: int, high: int, rows: int) -> torch.Tensor:
        shape = (experts, rows, n)
        return torch.randint(low, high, shape, dtype=torch.uint8, device=device, generator=generator)

    codes = integers(0, 2**weight.bits, k)
    if weight == E4M3FN:
        codes[(codes & NAN_CODE) == NAN_CODE] = 0
    zeros = integers(0, 2**weight.bits, groups) if weight.zero_point else None
    deviation = float(np.nanstd(numbers_of(weight))) * (math.sqrt(2) if weight.zero_point else 1)
    usual = 1 / (deviation * math.sqrt(k))
    global_scales = channel_scales = None
    if held.scale == E8M0FNU:
        exponent = SCALE_BIAS + round(math.log2(usual))
        scales = integers(exponent - 1, exponent + 1, groups)
    elif held.folded:
        scales = integers(HALF, TWO, groups)
        channel_scales = (torch.rand((experts, n), device=device, generator=generator) + 0.5) * usual
    elif held.scale == E4M3FN:
        scales = integers(HALF, TWO, groups)
        spread = torch.rand(experts, device=device, generator=generator) + 0.5
        global_scales = (spread * usual).bfloat16().float()  # short, so that products are exact in float32
    else:
        spread = torch.rand((experts, groups, n), device=device, generator=generator) + 0.5
        if workload.types.a.bits == 8 and workload.group_size != -1:
            spread, usual = (spread > 1) * 0.5 + 0.5, 2.0 ** round(math.log2(usual))
        scales = (spread * usual).to(torch_dtype(workload.types.s))
    return Weights(workload, codes, scales, zeros, global_scales, channel_scales)


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
    values = torch.randn((problem.m, problem.k), device=device, generator=generator)
    topk_ids = None
    if workload.moe:
        scores = torch.rand((tokens, workload.num_experts), device=device, generator=generator)
        chosen = scores.topk(workload.top_k, dim=1).indices.to(torch.int32)
        topk_ids = chosen.reshape(problem.m, problem.top_k).contiguous()
    a, token_scales = _quantize(values, workload.types.a)
    inputs = Inputs(tokens, problem, a, topk_ids, 1, token_scales)
    inputs.copies = copies_needed(weight_bytes(problem, inputs.experts_hit), l2_bytes)
    return inputs


def _quantize(values: torch.Tensor, element: DType) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return activations of a type and, for those of 8 bits, the scale of each row."""
    if element.bits == 16:
        return values.to(torch_dtype(element)), None
    from ..ops import quantize_activations

    return quantize_activations(values, torch_dtype(element))


def copies_needed(read_bytes: int, l2_bytes: int) -> int:
    """Return how many copies of the weights to rotate over so that none is still in L2 at its turn.

    Their total exceeds twice the L2 cache, unless that takes more than `MOST_COPIES`.
    """
    return min(MOST_COPIES, 2 * l2_bytes // read_bytes + 1)


def reference(weights: Weights, inputs: Inputs) -> torch.Tensor:
    """Return the float32 product, `[rows of D, n]`."""
    import torch

    if inputs.topk_ids is None:
        return inputs.values @ weights.dequantize()
    shape = (rows_out(inputs.problem), inputs.problem.n)
    out = torch.empty(shape, dtype=torch.float32, device=inputs.a.device)
    for expert, rows in rows_by_expert(inputs.topk_ids):
        out[rows] = inputs.values[rows // inputs.problem.top_k] @ weights.dequantize(expert)
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
