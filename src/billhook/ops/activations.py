"""Quantize activations to 8 bits: one scale for each token, or one that was found before for all."""

from __future__ import annotations

import torch

from . import library


def quantize_activations(
    x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, scale: float | torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize with one scale for each token or a static one for all, rounding to nearest (ties to even).

    A token's own scale is its largest magnitude / 448 (float8_e4m3fn) or / 127 (int8), rounded to float32;
    that of a token of zeros is 0. Codes are the nearest for the rounded scale, to the bit those of
    `formats.activations.quantize_dynamic` and `quantize_static`. Infinities and NaN reach their own token's
    products alone. On CUDA tensors it is one kernel, which reads `x` once.

    Args:
        x: [tokens, k], floating point; taken as float32. Rows need not be dense; a kernel is fastest where
            they begin at multiples of 16 bytes.
        dtype: float8_e4m3fn or int8.
        scale: A static scale, positive, taken as float32, such as a checkpoint's input scale; what it does
            not cover saturates. As a tensor, of one element where `x` is, its value is not looked at.

    Returns:
        Codes [tokens, k] of that type and scales, float32 [tokens, 1]: what `gemm` takes.

    Raises:
        WeightError: Another type or shape, or a static scale that is not positive and finite.
        CompileError, ToolchainError, BundleError, CudaError: The kernel cannot be compiled, read or loaded.
    """
    tensor, number = (scale, None) if isinstance(scale, torch.Tensor) else (None, scale)
    quantized: tuple[torch.Tensor, torch.Tensor] = library.quantize_activations(x, dtype, tensor, number)
    return quantized
