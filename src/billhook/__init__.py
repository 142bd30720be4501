"""Billhook: generates, compiles, tunes and runs mixed-precision GEMM kernels for NVIDIA GPUs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import ToolchainError

if TYPE_CHECKING:
    from . import nn
    from .dispatch.provider import use_bundle, use_rules
    from .nn import quantize_model
    from .nn.load import load
    from .ops import (
        PackedWeight,
        Routing,
        fold_scales,
        gemm,
        grouped_gemm,
        import_compressed_tensors,
        import_gptq,
        machete_mm,
        machete_prepack_B,
        machete_supported_schedules,
        moe_block_m,
        moe_gemm,
        pack_weight,
        quantize_activations,
        quantize_weight,
        route,
    )

__version__ = "0.1.0"

__all__ = [
    "PackedWeight",
    "Routing",
    "fold_scales",
    "gemm",
    "grouped_gemm",
    "import_compressed_tensors",
    "import_gptq",
    "load",
    "machete_mm",
    "machete_prepack_B",
    "machete_supported_schedules",
    "moe_block_m",
    "moe_gemm",
    "nn",
    "pack_weight",
    "quantize_activations",
    "quantize_model",
    "quantize_weight",
    "route",
    "use_bundle",
    "use_rules",
]


_ELSEWHERE = {  # the others: ".ops"
    "load": ".nn",
    "nn": ".nn",
    "quantize_model": ".nn",
    "use_bundle": ".dispatch.provider",
    "use_rules": ".dispatch.provider",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch or CUDA when it is first asked for, so that commands start quickly without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_ELSEWHERE.get(name, ".ops"), __name__)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ToolchainError(
            f"billhook.{name} needs torch, which is not installed: pip install 'billhook[cuda,torch]'"
        ) from error
    value = globals()[name] = module if name == "nn" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Return the names that `__getattr__` can give here too, which `help` and completion look at."""
    from importlib.util import find_spec

    return sorted({*globals(), *(__all__ if find_spec("torch") else ())})
