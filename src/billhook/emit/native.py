"""Sources of the kernels that Billhook compiles and launches itself: one file per kernel."""

from __future__ import annotations

from collections.abc import Iterable

from .. import families
from ..arch import Arch
from ..config import KernelConfig
from .environment import templates
from .source import SourceFile

# Modules beside GEMMs: name -> what they are for.
SUPPORT = {"route": "MoE routing", "group": "MoE grouping", "pack": "packing", "quantize": "quantizing"}

# Kernels that pack codes: symbol, source of kernel/pack.cuh, bits of a code there and when packed.
_CODE_PACKERS = (
    ("pack_bytes_kn_4", "BytesKn", 8, 4),
    ("pack_bytes_kn_8", "BytesKn", 8, 8),
    ("pack_bytes_nk_4", "BytesNk", 8, 4),
    ("pack_bytes_nk_8", "BytesNk", 8, 8),
    ("pack_nibbles_nk_4", "NibblesNk", 4, 4),
    ("pack_gptq_4", "Gptq<4>", 4, 4),
    ("pack_gptq_8", "Gptq<8>", 8, 8),
    ("pack_awq_4", "Awq", 4, 4),
    ("pack_gptq_ordered_4", "Ordered<pack::Gptq<4>>", 4, 4),
    ("pack_gptq_ordered_8", "Ordered<pack::Gptq<8>>", 8, 8),
    ("pack_nibbles_nk_ordered_4", "Ordered<pack::NibblesNk>", 4, 4),
    ("pack_bytes_nk_ordered_8", "Ordered<pack::BytesNk>", 8, 8),
)


def emit(configs: Iterable[KernelConfig]) -> list[SourceFile]:
    """Write the source of each kernel, in the order given.

    Args:
        configs: Kernels to instantiate; equal configs give one file.

    Returns:
        One `NAME.cu` per kernel, NAME being `KernelConfig.name`, also the kernel's symbol.
    """
    template = templates().get_template("kernel.cu.jinja")
    return [
        SourceFile(f"{config.name}.cu", template.render(kernel=config, boxes=families.boxes(config)))
        for config in dict.fromkeys(configs)
    ]


def support_name(part: str, arch: Arch) -> str:
    """Return the name of the module of kernels that stand beside GEMMs, compiled for `arch`.

    Args:
        part: A name of `SUPPORT`.
        arch: The GPU target.
    """
    return f"{part}_{arch.sm}"


def emit_support(part: str, arch: Arch) -> SourceFile:
    """Write the source of the kernels that stand beside GEMMs.

    Args:
        part: A name of `SUPPORT`.
        arch: The GPU target.
    """
    template = templates().get_template(f"{part}.cu.jinja")
    return SourceFile(f"{support_name(part, arch)}.cu", template.render(code_packers=_CODE_PACKERS))
