"""The arguments of the operators, in the order of their schemas.

Those that most calls leave out come last: torch passes no defaults at the end on, which saves time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


def output_type(a: torch.dtype, scales: torch.dtype) -> torch.dtype:
    """Return the type of D unless one is asked for: that of 16-bit activations, else of the scales.

    Beside scales of 8 bits it is bfloat16.
    """
    if a.itemsize == 2:
        return a
    return torch.bfloat16 if scales == torch.uint8 else scales


class Gemm(NamedTuple):
    """A dense GEMM; see `operators.gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    n: int
    group_size: int
    format: str
    zeros: torch.Tensor | None = None
    global_scales: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    split_k: bool = True
    config: str = ""
    token_scales: torch.Tensor | None = None
    channel_scales: torch.Tensor | None = None
    output_dtype: torch.dtype | None = None

    @property
    def output(self) -> torch.dtype:
        """Type of D."""
        return self.output_dtype or output_type(self.a.dtype, self.scales.dtype)

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.a.shape[0])


class MoeGemm(NamedTuple):
    """An MoE GEMM with a given routing; see `operators.moe_gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    n: int
    group_size: int
    format: str
    top_k: int
    sorted_token_ids: torch.Tensor
    expert_ids: torch.Tensor
    num_tokens_padded: torch.Tensor
    block_m: int
    complete: bool
    topk_weights: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    global_scales: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    split_k: bool = True
    config: str = ""
    token_scales: torch.Tensor | None = None
    channel_scales: torch.Tensor | None = None
    output_dtype: torch.dtype | None = None

    @property
    def experts(self) -> int:
        """Number of experts."""
        return int(self.codes.shape[0])

    @property
    def output(self) -> torch.dtype:
        """Type of D."""
        return self.output_dtype or output_type(self.a.dtype, self.scales.dtype)

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.a.shape[0]) * self.top_k


class MoeGemmTopk(NamedTuple):
    """An MoE GEMM that routes itself; see `operators.moe_gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    n: int
    group_size: int
    format: str
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor | None = None
    zeros: torch.Tensor | None = None
    global_scales: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    split_k: bool = True
    config: str = ""
    token_scales: torch.Tensor | None = None
    channel_scales: torch.Tensor | None = None
    output_dtype: torch.dtype | None = None

    @property
    def top_k(self) -> int:
        """Experts that each token visits."""
        return int(self.topk_ids.shape[1])

    @property
    def output(self) -> torch.dtype:
        """Type of D."""
        return self.output_dtype or output_type(self.a.dtype, self.scales.dtype)

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.topk_ids.numel())

    def routed(self, sorting: tuple[torch.Tensor, torch.Tensor, torch.Tensor], block_m: int) -> MoeGemm:
        """Return the same GEMM with its routing; rows without an expert may exist."""
        weight, rest = self[: self._fields.index("topk_ids")], self[self._fields.index("topk_weights") :]
        return MoeGemm._make((*weight, self.top_k, *sorting, block_m, False, *rest))
