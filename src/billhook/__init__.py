"""Billhook: generates, compiles, tunes and runs mixed-precision GEMM kernels for NVIDIA GPUs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dispatch.provider import use_bundle
    from .ops import (
        PackedWeight,
        Routing,
        gemm,
        import_compressed_tensors,
        import_gptq,
        moe_block_m,
        moe_gemm,
        pack_weight,
        quantize_weight,
        route,
    )

__version__ = "0.1.0"

__all__ = [
    "PackedWeight",
    "Routing",
    "gemm",
    "import_compressed_tensors",
    "import_gptq",
    "moe_block_m",
    "moe_gemm",
    "pack_weight",
    "quantize_weight",
    "route",
    "use_bundle",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch or CUDA when it is first asked for, so that commands start quickly without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(".dispatch.provider" if name == "use_bundle" else ".ops", __name__)
    value = globals()[name] = getattr(module, name)
    return value
