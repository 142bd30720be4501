"""The arguments of the operators, in the order of their schemas."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Gemm(NamedTuple):
    """A dense GEMM; see `operators.gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    global_scales: torch.Tensor | None
    bias: torch.Tensor | None
    n: int
    group_size: int
    format: str
    split_k: bool
    config: str

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.a.shape[0])


class MoeGemm(NamedTuple):
    """An MoE GEMM with a given routing; see `operators.moe_gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    global_scales: torch.Tensor | None
    bias: torch.Tensor | None
    n: int
    group_size: int
    format: str
    split_k: bool
    config: str
    topk_weights: torch.Tensor | None
    top_k: int
    sorted_token_ids: torch.Tensor
    expert_ids: torch.Tensor
    num_tokens_padded: torch.Tensor
    block_m: int
    complete: bool

    @property
    def experts(self) -> int:
        """Number of experts."""
        return int(self.codes.shape[0])

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.a.shape[0]) * self.top_k


class MoeGemmTopk(NamedTuple):
    """An MoE GEMM that routes itself; see `operators.moe_gemm`."""

    a: torch.Tensor
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    global_scales: torch.Tensor | None
    bias: torch.Tensor | None
    n: int
    group_size: int
    format: str
    split_k: bool
    config: str
    topk_weights: torch.Tensor | None
    topk_ids: torch.Tensor

    @property
    def top_k(self) -> int:
        """Experts that each token visits."""
        return int(self.topk_ids.shape[1])

    @property
    def rows(self) -> int:
        """Rows of D."""
        return int(self.topk_ids.numel())

    def routed(self, sorting: tuple[torch.Tensor, torch.Tensor, torch.Tensor], block_m: int) -> MoeGemm:
        """Return the same GEMM with its routing; rows without an expert may exist."""
        gemm = self[: len(Gemm._fields)]
        return MoeGemm._make((*gemm, self.topk_weights, self.top_k, *sorting, block_m, False))
