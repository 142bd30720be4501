"""A linear layer whose weight is packed."""

from __future__ import annotations

import torch

from ..errors import WeightError
from ..ops import PackedWeight, gemm, quantize_weight
from .packed import Packed


class QuantLinear(Packed):
    """Multiply by a packed weight: y = x @ W + bias.

    Args:
        weight: A dense packed weight; its memory is shared.
        bias: [n] of the activations' type, or None.
        input_order: int32 or int64 [k], for weights packed in another order of input features (GPTQ's
            activation order): row i of the weight multiplies feature `input_order[i]`. None: as they come.
        activations: float8_e4m3fn or int8, to which inputs are quantized; None to leave them in 16 bits.
        input_scale: A static scale for all of them, such as a checkpoint's; None to find one for each token.

    Raises:
        WeightError: The weight holds experts, or bias, input_order, activations or input_scale do not fit it.
    """

    bias: torch.Tensor | None
    input_order: torch.Tensor | None

    def __init__(
        self,
        weight: PackedWeight,
        bias: torch.Tensor | None = None,
        input_order: torch.Tensor | None = None,
        *,
        activations: torch.dtype | None = None,
        input_scale: float | None = None,
    ) -> None:
        super().__init__(weight, activations, input_scale)
        if weight.num_experts:
            raise WeightError(f"the weight holds {weight.num_experts} experts; use QuantMoE")
        if bias is not None and (tuple(bias.shape) != (weight.n,) or bias.dtype not in weight.outputs):
            raise WeightError(
                f"bias must be {weight.dtype} [{weight.n}] (got {bias.dtype} {tuple(bias.shape)})"
            )
        if input_order is not None:
            _check_order(input_order, weight.k)
            input_order = input_order.to(weight.device)
        kept = None if bias is None else torch.nn.Parameter(bias.detach().to(weight.device), False)
        self.register_parameter("bias", kept)
        self.register_buffer("input_order", input_order)

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        format: str = "u4b8",  # noqa: A002 - as in quantize_weight
        group_size: int | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> QuantLinear:
        """Quantize a linear layer; the result lies where the layer does.

        Args:
            linear: A layer with floating-point weights.
            format: How weights are stored, such as u4b8 or mxfp4.
            group_size: Weights along k that share one scale; -1 for one scale per output channel; the
                format's own by default.
            dtype: Type of the activations, float16 or bfloat16; the layer's own by default.

        Raises:
            WeightError: The weights have no such format: sizes, types, or values that are not finite.
        """
        weight = quantize_weight(linear.weight.t(), group_size, dtype, format=format)
        bias = None if linear.bias is None else linear.bias.to(dtype or linear.weight.dtype)
        return cls(weight, bias)

    @property
    def in_features(self) -> int:
        """Features of the input, k."""
        return self.weight.k

    @property
    def out_features(self) -> int:
        """Features of the output, n."""
        return self.weight.n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply.

        Args:
            x: [.., k] of the weight's type.

        Returns:
            [.., n] of the same type.

        Raises:
            WeightError: The input does not fit: dtype, device or shape.
        """
        weight = self.weight
        if x.shape[-1] != weight.k:
            raise WeightError(f"the input has {x.shape[-1]} features, the layer takes {weight.k}")
        rows = x.reshape(-1, weight.k)
        rows = rows.contiguous() if self.input_order is None else rows.index_select(1, self.input_order)
        rows, scales = self.quantize_input(rows)
        wanted = None if scales is None else x.dtype
        out = gemm(rows, weight, self.bias, token_scales=scales, output_dtype=wanted)
        return out.view(*x.shape[:-1], weight.n)

    def extra_repr(self) -> str:
        """Describe the layer, for `print(model)`."""
        order = "" if self.input_order is None else ", reordered inputs"
        return f"{super().extra_repr()}, bias={self.bias is not None}{order}"


def _check_order(input_order: torch.Tensor, k: int) -> None:
    if input_order.dtype not in (torch.int32, torch.int64) or tuple(input_order.shape) != (k,):
        raise WeightError(
            f"input_order must be int32 or int64 [{k}] (got {input_order.dtype} {tuple(input_order.shape)})"
        )
    if not torch.equal(input_order.sort().values.cpu(), torch.arange(k, dtype=input_order.dtype)):
        raise WeightError(f"input_order must hold each of 0 to {k - 1} once")
