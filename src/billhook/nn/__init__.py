"""Modules with packed weights, and transformers models made of them. Importing this imports torch."""

from __future__ import annotations

from .linear import QuantLinear
from .load import load
from .moe import QuantMoE, clamped_swiglu, silu_and_mul, top_k_softmax
from .patch import quantize_model

__all__ = [
    "QuantLinear",
    "QuantMoE",
    "clamped_swiglu",
    "load",
    "quantize_model",
    "silu_and_mul",
    "top_k_softmax",
]
