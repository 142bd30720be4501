"""Torch operators and packed weights. Importing this imports torch."""

from __future__ import annotations

from .activations import quantize_activations
from .grouped import grouped_gemm
from .imports import import_compressed_tensors, import_gptq
from .machete import machete_mm, machete_prepack_B, machete_supported_schedules
from .operators import Routing, gemm, moe_block_m, moe_gemm, route
from .packing import fold_scales, pack_quantized, pack_weight, quantize_weight, unpack_weight
from .weight import PackedWeight, from_arrays, stack_weights, to_arrays

__all__ = [
    "PackedWeight",
    "Routing",
    "fold_scales",
    "from_arrays",
    "gemm",
    "grouped_gemm",
    "import_compressed_tensors",
    "import_gptq",
    "machete_mm",
    "machete_prepack_B",
    "machete_supported_schedules",
    "moe_block_m",
    "moe_gemm",
    "pack_quantized",
    "pack_weight",
    "quantize_activations",
    "quantize_weight",
    "route",
    "stack_weights",
    "to_arrays",
    "unpack_weight",
]
