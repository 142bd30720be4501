"""Element types of activations, weights, scales and outputs.

One frozen value per type; all other modules refer to types by these objects or
by `DType.name`. Spellings that belong to one consumer (vLLM's `kU4B8`, CUTLASS's
`cutlass::half_t`) live with that consumer.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True, order=True)
class DType:
    """An element type.

    Args:
        name: Billhook's name, as used in kernel names and catalogs.
        bits: Storage bits per element.
        kind: "float", "int" or "void".
        signed: Whether negative values exist.
        bias: What is subtracted from the stored code (GPTQ-style biased integers).
    """

    name: str
    bits: int
    kind: str
    signed: bool = True
    bias: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def zero_point(self) -> bool:
        """Whether weights of this type have zero points, one beside each scale; else `bias` is their zero."""
        return self.kind == "int" and not self.signed


F16 = DType("f16", 16, "float")
BF16 = DType("bf16", 16, "float")
F32 = DType("f32", 32, "float")
S8 = DType("s8", 8, "int")
S32 = DType("s32", 32, "int")
U4 = DType("u4", 4, "int", signed=False)
U4B8 = DType("u4b8", 4, "int", bias=8)
U8 = DType("u8", 8, "int", signed=False)
U8B128 = DType("u8b128", 8, "int", bias=128)
E4M3FN = DType("e4m3fn", 8, "float")
E2M1F = DType("e2m1f", 4, "float")
E8M0FNU = DType("e8m0fnu", 8, "float", signed=False)
VOID = DType("void", 0, "void", signed=False)

ALL: dict[str, DType] = {
    t.name: t for t in (F16, BF16, F32, S8, S32, U4, U4B8, U8, U8B128, E4M3FN, E2M1F, E8M0FNU, VOID)
}


def dtype(name: str) -> DType:
    """Return the type called `name`.

    Raises:
        InputError: No such type; the message lists those that exist.
    """
    try:
        return ALL[name]
    except KeyError:
        raise InputError(f"unknown element type {name!r}; known types: {', '.join(ALL)}") from None
