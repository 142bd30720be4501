"""The formats of weights that kernels read; docs/layout.md, "Packed weights", draws their layouts."""

from __future__ import annotations

from dataclasses import dataclass

from .dtypes import BF16, E2M1F, E4M3FN, E8M0FNU, F16, S8, U4, U4B8, U8, U8B128, DType


@dataclass(frozen=True)
class PackedFormat:
    """A format that kernels read.

    Args:
        name: Its name, such as "u4b8".
        number: Its number in state dicts; another layout gets another number.
        weight: Type of the codes.
        scale: Type of the scales; None where they have the output's type.
        group_sizes: Weights along k that may share one scale, the usual size first; -1 for channel scales.
        outputs: Types of the output, and of 16-bit activations where it is multiplied by those.
        narrow_activations: Types of 8-bit activations that it is multiplied by too, those in which its
            numbers are exact.
        folded: Whether a code times its scale is rounded to e4m3, and channels have one more scale each, in
            float32; then it is multiplied by 8-bit activations alone.
    """

    name: str
    number: int
    weight: DType
    scale: DType | None
    group_sizes: tuple[int, ...]
    outputs: tuple[DType, ...] = (F16, BF16)
    narrow_activations: tuple[DType, ...] = ()
    folded: bool = False

    @property
    def activations(self) -> tuple[DType, ...]:
        """Types of 16-bit activations that it is multiplied by; the output has the same."""
        return () if self.folded else self.outputs

    @property
    def global_scale(self) -> bool:
        """Whether one more scale multiplies a whole weight: e4m3 scales lack the range to do without."""
        return self.scale == E4M3FN and not self.folded

    def summed_group(self, group_size: int) -> int:
        """Return how many products along k kernels add before a scale multiplies them; -1 for all."""
        return -1 if self.folded else group_size

    def scale_type(self, output: DType) -> DType:
        """Return the type of the scales where the output has a type."""
        return self.scale or output


_GROUPS = (128, 64, 32, -1)
FORMATS = {
    one.name: one
    for one in (
        PackedFormat("u4b8", 1, U4B8, None, _GROUPS, narrow_activations=(E4M3FN, S8)),
        PackedFormat("u4", 2, U4, None, _GROUPS, narrow_activations=(E4M3FN, S8)),
        PackedFormat("u8b128", 3, U8B128, None, _GROUPS, narrow_activations=(S8,)),
        PackedFormat("u8", 4, U8, None, _GROUPS),
        PackedFormat("fp8", 5, E4M3FN, None, (128, -1), narrow_activations=(E4M3FN,)),
        PackedFormat("mxfp8", 6, E4M3FN, E8M0FNU, (32,), (BF16,)),
        PackedFormat("mxfp4", 7, E2M1F, E8M0FNU, (32,), (BF16,), narrow_activations=(E4M3FN,)),
        PackedFormat("nvfp4", 8, E2M1F, E4M3FN, (16,)),
        PackedFormat("w4a8", 9, U4B8, E4M3FN, (128,), narrow_activations=(E4M3FN,), folded=True),
    )
}
