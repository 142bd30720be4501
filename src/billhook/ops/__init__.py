"""Torch operators and packed weights. Importing this imports torch."""

from __future__ import annotations

from .operators import Routing, gemm, moe_block_m, moe_gemm, route
from .weight import (
    PackedWeight,
    import_compressed_tensors,
    import_gptq,
    pack_quantized,
    pack_weight,
    quantize_weight,
    unpack_weight,
)

__all__ = [
    "PackedWeight",
    "Routing",
    "gemm",
    "import_compressed_tensors",
    "import_gptq",
    "moe_block_m",
    "moe_gemm",
    "pack_quantized",
    "pack_weight",
    "quantize_weight",
    "route",
    "unpack_weight",
]
