"""Sources to machine code: NVRTC, the content-addressed cache, bundles. No GPU and no torch needed."""

from __future__ import annotations

from .artifact import Artifact, Unit
from .bundle import Bundle, check_target, write_bundle
from .cache import Cache, cache_folder
from .compile import compile_kernel, compile_support, compile_unit, compile_units, kernel_unit, support_unit
from .make import Outcome, build_plan, plan_units
from .manifest import BundledKernel, Input, Manifest
from .resources import Resources

__all__ = [
    "Artifact",
    "Bundle",
    "BundledKernel",
    "Cache",
    "Input",
    "Manifest",
    "Outcome",
    "Resources",
    "Unit",
    "build_plan",
    "cache_folder",
    "check_target",
    "compile_kernel",
    "compile_support",
    "compile_unit",
    "compile_units",
    "kernel_unit",
    "plan_units",
    "support_unit",
    "write_bundle",
]
