"""The experts of a Mixture-of-Experts layer, their weights packed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import WeightError
from ..ops import PackedWeight, moe_block_m, moe_gemm, route
from .packed import Packed

Activation = Callable[[torch.Tensor], torch.Tensor]


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, the activation of most gated MLPs.

    Args:
        gate_up: [.., 2 * inner]: all of gate, then all of up.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def clamped_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return (up + 1) * gate * sigmoid(1.702 gate), both clamped at 7: the activation of gpt-oss.

    Args:
        gate_up: [.., 2 * inner]: all of gate, then all of up; gpt-oss itself stores them in turns.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)  # the clamp is `swiglu_limit` of the model's config
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def top_k_softmax(
    router_logits: torch.Tensor, top_k: int, renormalize: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the experts of each token from the scores that a router gives them.

    Args:
        router_logits: Floating point [tokens, num_experts].
        top_k: Experts that each token visits.
        renormalize: Whether the weights of a token's experts sum to 1, as in Mixtral.

    Returns:
        topk_ids, int64 [tokens, top_k], and topk_weights, float32 [tokens, top_k]: what `QuantMoE` takes.
    """
    scores = router_logits.softmax(dim=-1, dtype=torch.float32)
    weights, ids = scores.topk(top_k, dim=-1)
    return ids, weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights


class QuantMoE(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """Send each token through the gated MLPs of the experts it visits, and add up what they answer.

    Takes the place of the experts of a transformers model: the same call, whatever router chose them.

    Args:
        w13: A packed weight [experts, k, 2 * inner]: gate projections, then up projections.
        w2: A packed weight [experts, inner, k]: down projections.
        w13_bias: [experts, 2 * inner] of the activations' type, or None.
        w2_bias: [experts, k] likewise.
        activation: Turns rows of 2 * inner features into rows of inner features.
        complete: Promise that no expert id is outside the experts; saves clearing the outputs.
        activations: float8_e4m3fn or int8, to which the inputs of both GEMMs are quantized; None to leave
            them in 16 bits.
        input_scales: Static scales of the inputs of w13 and of w2, each for all experts: the largest of
            theirs. None to find one for each row.

    Raises:
        WeightError: A weight is dense, sizes, types or devices differ, or activations or scales do not fit.
    """

    w13_bias: torch.Tensor | None
    w2_bias: torch.Tensor | None

    def __init__(
        self,
        w13: PackedWeight,
        w2: PackedWeight,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
        *,
        activation: Activation = silu_and_mul,
        complete: bool = False,
        activations: torch.dtype | None = None,
        input_scales: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        first, second = input_scales or (None, None)
        self.w13, self.w2 = Packed(w13, activations, first), Packed(w2, activations, second)
        _check_pair(w13, w2)
        for name, bias, weight in (("w13_bias", w13_bias, w13), ("w2_bias", w2_bias, w2)):
            self.register_parameter(name, None if bias is None else _parameter(name, bias, weight))
        self.activation = activation
        self.complete = complete

    @property
    def num_experts(self) -> int:
        """Number of experts."""
        return self.w13.weight.num_experts

    def forward(
        self, hidden_states: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor
    ) -> torch.Tensor:
        """Send tokens through their experts.

        Args:
            hidden_states: [.., k] of the weights' type.
            topk_ids: int32 or int64 [tokens, top_k]; an id outside the experts, such as -1, adds nothing.
            topk_weights: Floating point [tokens, top_k]: what each expert's answer counts.

        Returns:
            [.., k] of the same type.

        Raises:
            WeightError: A tensor does not fit: dtype, device or shape.
        """
        w13, w2 = self.w13.weight, self.w2.weight
        if hidden_states.shape[-1] != w13.k:
            raise WeightError(f"the input has {hidden_states.shape[-1]} features, the experts take {w13.k}")
        tokens = hidden_states.reshape(-1, w13.k).contiguous()
        if topk_ids.shape != topk_weights.shape or topk_ids.dim() != 2 or len(topk_ids) != len(tokens):
            raise WeightError(
                f"topk_ids and topk_weights must be [{len(tokens)}, top_k] "
                f"(got {tuple(topk_ids.shape)} and {tuple(topk_weights.shape)})"
            )
        factors = topk_weights.to(torch.float32).reshape(-1).contiguous()
        rows = self._answers(tokens, topk_ids, factors)
        return rows.view(*topk_ids.shape, w2.n).sum(dim=1).view(hidden_states.shape)

    def _answers(self, tokens: torch.Tensor, topk_ids: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return one row per (token, slot)."""
        w13, w2 = self.w13.weight, self.w2.weight
        a, scales = self.w13.quantize_input(tokens)
        wanted = None if scales is None else tokens.dtype
        if torch.compiler.is_compiling():  # the block size of a routing is no constant of a traced graph
            routing, again = topk_ids, topk_ids.reshape(-1, 1)
        else:
            block_m = moe_block_m(w13, max(1, len(tokens)), topk_ids.shape[1], a.dtype, wanted)
            routing = again = route(topk_ids, self.num_experts, block_m, complete=self.complete)
        gate_up = moe_gemm(a, w13, routing, None, self.w13_bias, token_scales=scales, output_dtype=wanted)
        a, scales = self.w2.quantize_input(self.activation(gate_up))
        return moe_gemm(a, w2, again, factors, self.w2_bias, token_scales=scales, output_dtype=wanted)

    def extra_repr(self) -> str:
        """Describe what the weights do not tell, for `print(model)`."""
        name = getattr(self.activation, "__name__", repr(self.activation))
        return f"activation={name}, bias={self.w13_bias is not None}"


def _check_pair(w13: PackedWeight, w2: PackedWeight) -> None:
    """Refuse weights that are not the two of one layer."""
    if not w13.num_experts or w13.num_experts != w2.num_experts:
        raise WeightError(
            f"w13 and w2 must hold the same experts (got {w13.num_experts} and {w2.num_experts}; 0 is dense)"
        )
    if w13.n != 2 * w2.k or w13.k != w2.n:
        raise WeightError(
            f"w13 must be [k, 2 * inner] and w2 [inner, k] (got [{w13.k}, {w13.n}] and [{w2.k}, {w2.n}])"
        )
    if w13.device != w2.device or not set(w13.dtypes) & set(w2.dtypes):
        raise WeightError(
            f"w13 and w2 must take the same activations on one device (got {w13} on {w13.device} and "
            f"{w2} on {w2.device})"
        )


def _parameter(name: str, bias: torch.Tensor, weight: PackedWeight) -> torch.nn.Parameter:
    if bias.shape != (weight.num_experts, weight.n) or bias.dtype not in weight.outputs:
        raise WeightError(
            f"{name} must be {weight.dtype} [{weight.num_experts}, {weight.n}] "
            f"(got {bias.dtype} {tuple(bias.shape)})"
        )
    return torch.nn.Parameter(bias.detach().to(weight.device), requires_grad=False)
