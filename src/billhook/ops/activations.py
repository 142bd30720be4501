"""Quantize activations to 8 bits: one scale for each token, or one that was found before for all."""

from __future__ import annotations

import torch

from ..errors import WeightError
from .tensors import NARROW_DTYPES

_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
_SMALLEST_SCALE = 2.0**-149  # above 0 in float32
_SMALLEST_EXPONENT, _FRACTION_BITS = -6, 3  # of e4m3's normal numbers


def quantize_activations(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, scale: float | torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with one scale for each token or a static one for all, rounding to nearest (ties to even).

    A token's own scale is its largest magnitude / 448 (float8_e4m3fn) or / 127 (int8), rounded to float32;
    that of a token of zeros is 0. Codes are the nearest for the rounded scale, to the bit those of
    `formats.activations.quantize_dynamic` and `quantize_static`. Infinities and NaN reach their own token's
    products alone.

    Args:
        x: [tokens, k], floating point; taken as float32.
        dtype: float8_e4m3fn or int8.
        scale: A static scale, positive, taken as float32, such as a checkpoint's input scale; what it does
            not cover saturates. As a tensor, of one element where `x` is, its value is not looked at.

    Returns:
        Codes [tokens, k] of that type and scales, float32 [tokens, 1]: what `gemm` takes.

    Raises:
        WeightError: Another type or shape, or a static scale that is not positive and finite.
    """
    if dtype not in NARROW_DTYPES.values():
        known = " or ".join(map(str, NARROW_DTYPES.values()))
        raise WeightError(f"activations are quantized to {known} (got {dtype})")
    if x.dim() != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise WeightError(f"x must be floating point [tokens, k] (got {x.dtype} {tuple(x.shape)})")
    values = x.float()
    if scale is None:
        largest = values.abs().amax(dim=1, keepdim=True).double()
        scales = (largest / _LARGEST[dtype]).float()
    elif isinstance(scale, torch.Tensor):
        if scale.numel() != 1 or scale.device != x.device:
            raise WeightError(
                f"a static scale must be one number on {x.device} "
                f"(got {tuple(scale.shape)} on {scale.device})"
            )
        scales = scale.float().reshape(1, 1).repeat(x.shape[0], 1)
    elif _SMALLEST_SCALE <= scale <= torch.finfo(torch.float32).max:
        scales = torch.full((x.shape[0], 1), scale, dtype=torch.float32, device=x.device)
    else:
        raise WeightError(f"a static scale must be positive and finite in float32 (got {scale})")
    # In float64 the quotient of two float32 numbers falls on no tie that is none.
    steps = torch.where(scales == 0, 0.0, values.double() / scales.double())
    if dtype == torch.int8:
        return steps.round().clamp(-128, 127).to(dtype), scales
    exponent = torch.frexp(steps).exponent - 1
    spacing = torch.ldexp(torch.ones_like(steps), exponent.clamp(min=_SMALLEST_EXPONENT) - _FRACTION_BITS)
    rounded = (steps / spacing).round() * spacing
    return rounded.clamp(-_LARGEST[dtype], _LARGEST[dtype]).float().to(dtype), scales
