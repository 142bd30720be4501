"""How vLLM's Marlin kernels read weights: what their loaders do to a checkpoint, from the plain form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...dtypes import BF16, E4M3FN, E8M0FNU
from ..inputs import Weights, pack_words

if TYPE_CHECKING:
    import torch

INT8_SCALE = 4096  # largest group scale under int8 activations, as an integer
MOST_E4M3 = 448.0
# Of exponents. Kernels shift codes of minifloats into place and leave the difference of biases to a scale.
E4M3FN_BIAS, E2M1F_BIAS = 7, 1
NVFP4_SHIFT = 7  # scales of nvfp4 are stored times 2^7, so that their top bit is set


@dataclass(frozen=True)
class Packed:
    """One copy of a layer's weights.

    Args:
        codes: int32 `[experts, ..]`.
        scales: `[experts, groups, n]`.
        zeros: Zero points, int32 `[experts, groups, n * bits / 32]`; empty where there are none.
        global_scales: float32 `[experts]`, or None.
        token_factor: What the scales of tokens are multiplied by.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    global_scales: torch.Tensor | None
    token_factor: float = 1.0

    def clone(self) -> Packed:
        """Return a copy in memory of its own."""
        whole = None if self.global_scales is None else self.global_scales.clone()
        return Packed(self.codes.clone(), self.scales.clone(), self.zeros.clone(), whole, self.token_factor)


def pack(weights: Weights) -> Packed:
    """Repack the codes with vLLM's own kernel, and order scales and zero points.

    Args:
        weights: In the plain form.
    """
    import torch

    layer, device = weights.workload, weights.codes.device
    narrow, bits = layer.types.a.bits == 8, layer.types.b.bits
    none = torch.empty(0, dtype=torch.int32, device=device)
    repack = torch.ops._C.gptq_marlin_repack
    codes = torch.stack([repack(part, none, layer.k, layer.n, bits, narrow) for part in weights.words])
    zeros = none
    if weights.zeros is not None:
        zeros = torch.stack([order_zeros(part, narrow) for part in weights.zeros])
    kind = layer.types.s
    if kind == E8M0FNU:
        scales = torch.stack([swap_middle(permute_scales(part, False)) for part in weights.scales])
        return Packed(codes, scales.view(torch.float8_e8m0fnu), zeros, None)
    if weights.global_scales is not None:
        scales, factor = _shorten_scales(weights)
        return Packed(codes, scales, zeros, weights.global_scales * factor)
    whole_k = layer.group_size == -1 or layer.group_size >= layer.k
    scales = torch.stack([permute_scales(part, whole_k or narrow) for part in weights.scales])
    if layer.types.b == E4M3FN:
        scales = scales * 2.0 ** (_exponent_bias(weights) - E4M3FN_BIAS)
    if narrow and scales.shape[1] > 1:
        largest = float(scales.max())
        steps = (scales.float() / largest * INT8_SCALE).round().to(torch.int16)
        return Packed(codes, steps.view(scales.dtype), zeros, None, largest / INT8_SCALE)
    return Packed(codes, scales, zeros, None)


def _exponent_bias(weights: Weights) -> int:
    """Return the exponent's bias of the activations' type."""
    return 127 if weights.workload.types.c == BF16 else 15


def _shorten_scales(weights: Weights) -> tuple[torch.Tensor, float]:
    """Return scales of nvfp4 with 5 exponent bits and no sign, and what global scales are multiplied by."""
    import torch

    factors = torch.stack([weights.factors(expert) for expert in range(weights.experts)])
    raised = 1.0
    if weights.workload.types.c == BF16:  # f16 has no room for it
        raised = max(1.0, 2.0 ** math.floor(math.log2(MOST_E4M3 / float(factors.max()))))
    wide = (factors * raised * 2.0**NVFP4_SHIFT).half()
    wide[wide < 2] = 0  # what has no top bit
    ordered = torch.stack([swap_middle(permute_scales(part, False)) for part in wide])
    scales = (ordered.view(torch.int16) >> 7).to(torch.uint8).view(torch.float8_e4m3fn)
    return scales, 2.0 ** (_exponent_bias(weights) - E2M1F_BIAS - NVFP4_SHIFT) / raised


def permute_scales(scales: torch.Tensor, whole_k: bool) -> torch.Tensor:
    """Order scales as Marlin reads them.

    A row of 64 columns is an 8 x 8 matrix that group scales transpose. Scales that span all of k
    are applied to the accumulators instead, so they follow those: per 32 columns, lane i of four
    holds the pairs at columns 2i, 2i + 8, 2i + 16 and 2i + 24. With 8-bit activations all are.

    Args:
        scales: `[groups, n]`.
        whole_k: One group spans all of k, or activations have 8 bits.
    """
    n = scales.shape[-1]
    if not whole_k:
        return scales.reshape(-1, 8, 8).transpose(1, 2).reshape(-1, n).contiguous()
    return scales.reshape(-1, 4, 4, 2).transpose(1, 2).reshape(-1, n).contiguous()


def swap_middle(scales: torch.Tensor) -> torch.Tensor:
    """Swap the middle two of every four columns, as scales of 8 bits lie.

    Args:
        scales: `[groups, n]`.
    """
    return scales.reshape(-1, 2, 2).transpose(1, 2).reshape(scales.shape).contiguous()


def order_zeros(zeros: torch.Tensor, narrow: bool) -> torch.Tensor:
    """Order zero points as group scales lie, interleave them for dequantization, and pack them along n.

    Args:
        zeros: uint8 `[groups, n]`, of 4 bits: kernels take no others.
        narrow: Activations have 8 bits: nothing is interleaved.
    """
    columns = permute_scales(zeros, False)
    if not narrow:  # the even places of a word, then the odd ones
        columns = columns.reshape(-1, 4, 2).transpose(1, 2).reshape(zeros.shape)
    return pack_words(columns.t(), 4).t().contiguous()
