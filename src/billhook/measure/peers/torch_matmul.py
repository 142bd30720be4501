"""torch's own products (cuBLAS) on weights that were never quantized, or on float8 ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...dtypes import E4M3FN
from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights, torch_dtype

if TYPE_CHECKING:
    import torch


class TorchMatmul:
    """Dense products: 16-bit weights beside 16-bit activations, float8 ones beside float8."""

    name = "torch"

    def version(self) -> str:
        """Return torch's version."""
        import torch

        return str(torch.__version__)

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Make the weights, `[n, k]` as `torch.nn.Linear` keeps them."""
        layer = weights.workload
        if layer.moe:
            raise UnsupportedError("dense layers only")
        count = max(case.copies for case in cases)
        if layer.types.a == E4M3FN:
            return _bind_scaled(weights, count)
        if layer.types.a.bits == 8:
            raise UnsupportedError(f"no product of {layer.types.a} activations with scales")
        first = weights.dequantize().t().to(torch_dtype(layer.types.a)).contiguous()
        packed = [first, *(first.clone() for _ in range(count - 1))]

        def bind(inputs: Inputs) -> Launch:
            def call(copy: int) -> torch.Tensor:
                return inputs.a @ packed[copy].t()

            return Launch(call, "cuBLAS")

        return bind


def _bind_scaled(weights: Weights, count: int) -> Bind:
    """Multiply float8 by float8, scales by row and by column; the weights' numbers must be float8 ones."""
    import torch

    layer = weights.workload
    if weights.channel_scales is None:
        codes, channel_scales = _find_numbers(weights), weights.scales[0].float()
    else:
        codes, channel_scales = weights.fold().view(torch.uint8), weights.channel_scales[:1]
    first = codes.t().contiguous().view(torch.float8_e4m3fn)
    packed = [first, *(first.clone() for _ in range(count - 1))]

    def bind(inputs: Inputs) -> Launch:
        def call(copy: int) -> torch.Tensor:
            return torch._scaled_mm(
                inputs.a,
                packed[copy].t(),
                scale_a=inputs.token_scales,
                scale_b=channel_scales,
                out_dtype=torch_dtype(layer.types.c),
                use_fast_accum=True,
            )

        return Launch(call, "torch._scaled_mm")

    return bind


def _find_numbers(weights: Weights) -> torch.Tensor:
    """Return the numbers of the weights' codes as bytes of float8, `[k, n]`.

    Raises:
        UnsupportedError: float8 does not hold them, or scales are not those of channels.
    """
    import torch

    numbers = weights.numbers.to(torch.float8_e4m3fn)
    exact = torch.equal(numbers.float().nan_to_num(), weights.numbers.nan_to_num())
    if not exact or weights.zeros is not None or weights.workload.group_size != -1:
        raise UnsupportedError("float8 products need channel scales and weights that float8 holds")
    return numbers.view(torch.uint8)[weights.codes[0].int()]
