"""Sources to machine code: NVRTC, the content-addressed cache, bundles. No GPU and no torch needed."""

from __future__ import annotations

from .artifact import Artifact, Unit
from .cache import Cache, cache_folder
from .compile import compile_kernel, compile_support, compile_unit, compile_units, kernel_unit, support_unit
from .resources import Resources

__all__ = [
    "Artifact",
    "Cache",
    "Resources",
    "Unit",
    "cache_folder",
    "compile_kernel",
    "compile_support",
    "compile_unit",
    "compile_units",
    "kernel_unit",
    "support_unit",
]
