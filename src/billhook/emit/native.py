"""Sources of the kernels that Billhook compiles and launches itself: one file per kernel."""

from __future__ import annotations

from collections.abc import Iterable

from ..arch import Arch
from ..config import KernelConfig
from .environment import templates
from .source import SourceFile


def emit(configs: Iterable[KernelConfig]) -> list[SourceFile]:
    """Write the source of each kernel, in the order given.

    Args:
        configs: Kernels to instantiate; equal configs give one file.

    Returns:
        One `NAME.cu` per kernel, NAME being `KernelConfig.name`, also the kernel's symbol.
    """
    template = templates().get_template("kernel.cu.jinja")
    return [
        SourceFile(f"{config.name}.cu", template.render(kernel=config)) for config in dict.fromkeys(configs)
    ]


def support_name(arch: Arch) -> str:
    """Return the name of the MoE routing kernels compiled for `arch`."""
    return f"route_{arch.sm}"


def emit_support(arch: Arch) -> SourceFile:
    """Write the source of the kernels that MoE layers need beside their GEMMs."""
    return SourceFile(f"{support_name(arch)}.cu", templates().get_template("route.cu.jinja").render())
