"""Fold the scales of groups into weights where a checkpoint's config asks for e4m3 activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..dtypes import U4B8
from ..errors import UnsupportedError
from ..formats.packed import find_format
from .fuse import Fused

_FOLDED = find_format("w4a8")


def fold_modules(file: Path, modules: Sequence[Fused]) -> list[Fused]:
    """Return GEMMs, those of integer weights in groups beside e4m3 activations as w4a8 ones.

    Args:
        file: The config, for messages.
        modules: The GEMMs.

    Raises:
        UnsupportedError: Such a GEMM has zero points, 8 bits or groups of another size, or there is none.
    """
    found = [_fold(one) if _is_meant(one) else one for one in modules]
    if not any(one.held.folded for one in found):
        raise UnsupportedError(
            f"{file}: there are no scales to fold: by its quantization_config no layer has integer weights "
            "in groups and e4m3 activations; load or pack it as it is"
        )
    return found


def _is_meant(fused: Fused) -> bool:
    stored = fused.stored
    in_groups = stored.weight.kind == "int" and fused.group_size != -1
    return in_groups and stored.activations in _FOLDED.narrow_activations


def _fold(fused: Fused) -> Fused:
    stored = fused.stored
    if stored.weight != U4B8 or fused.group_size not in _FOLDED.group_sizes:
        sizes = " or ".join(map(str, _FOLDED.group_sizes))
        raise UnsupportedError(
            f"{fused.name}: scales are folded of {U4B8} weights (4 bits, symmetric) in groups of {sizes} "
            f"(got {stored.weight} in groups of {fused.group_size}); load or pack this checkpoint as it is"
        )
    return replace(fused, stored=replace(stored, scale=_FOLDED.scale))
