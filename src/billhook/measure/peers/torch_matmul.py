"""torch.matmul (cuBLAS) on 16-bit weights: what a layer costs that was never quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights, torch_dtype

if TYPE_CHECKING:
    import torch


class TorchMatmul:
    """Dense products by cuBLAS; the weights are dequantized and rounded beforehand."""

    name = "torch"

    def version(self) -> str:
        """Return torch's version."""
        import torch

        return str(torch.__version__)

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Dequantize the weights, `[n, k]` as `torch.nn.Linear` keeps them."""
        if weights.workload.moe:
            raise UnsupportedError("dense layers only")
        dtype = torch_dtype(weights.workload.types.a.name)
        first = weights.dequantize().t().to(dtype).contiguous()
        packed = [first, *(first.clone() for _ in range(max(case.copies for case in cases) - 1))]

        def bind(inputs: Inputs) -> Launch:
            def call(copy: int) -> torch.Tensor:
                return inputs.a @ packed[copy].t()

            return Launch(call, "cuBLAS")

        return bind
