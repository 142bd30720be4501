"""The CUTLASS names that Machete's generated sources are written in.

The enumerations carry the names of CUTLASS's Python library, so that `TypeConfig` and
`ScheduleConfig` read as documented; only what Machete or our kernels for its schedules use is listed.
`VLLMDataType` holds the biased integers that vLLM adds.

Source: CUTLASS, python/cutlass_library/library.py (names, C++ spellings).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DataType(Enum):
    """An element type; the value is CUTLASS's short name."""

    void = "void"
    u4 = "u4"
    u8 = "u8"
    s8 = "s8"
    s32 = "s32"
    e4m3 = "e4m3"
    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"


class VLLMDataType(Enum):
    """An integer type stored with a bias, as GPTQ weights are."""

    u4b8 = "u4b8"
    u8b128 = "u8b128"


AnyType = DataType | VLLMDataType


class MixedInputKernelScheduleType(Enum):
    """A mainloop; the value is its C++ tag."""

    TmaWarpSpecialized = "cutlass::gemm::KernelTmaWarpSpecialized"
    TmaWarpSpecializedPingpong = "cutlass::gemm::KernelTmaWarpSpecializedPingpong"
    TmaWarpSpecializedCooperative = "cutlass::gemm::KernelTmaWarpSpecializedCooperative"


class EpilogueScheduleType(Enum):
    """An epilogue; the value is its C++ tag."""

    NoSmemWarpSpecialized = "cutlass::epilogue::NoSmemWarpSpecialized"
    TmaWarpSpecialized = "cutlass::epilogue::TmaWarpSpecialized"
    TmaWarpSpecializedCooperative = "cutlass::epilogue::TmaWarpSpecializedCooperative"


class TileSchedulerType(Enum):
    """A tile scheduler; the value is its C++ tag."""

    StreamK = "cutlass::gemm::StreamKScheduler"
    Persistent = "cutlass::gemm::PersistentScheduler"


@dataclass(frozen=True)
class Spelling:
    """How one type is written.

    Args:
        bits: Storage bits of an element.
        tag: C++ type in CUTLASS.
        torch: Name of the torch scalar type, of what comes as a tensor of its own; "" for others.
        scalar: vLLM's scalar type tag, of what weights are stored in; "" for others.
    """

    bits: int
    tag: str
    torch: str = ""
    scalar: str = ""


SPELLINGS: dict[AnyType, Spelling] = {
    DataType.void: Spelling(0, "void"),
    DataType.u4: Spelling(4, "cutlass::uint4b_t", scalar="vllm::kU4"),
    DataType.u8: Spelling(8, "uint8_t", scalar="vllm::kU8"),
    DataType.s8: Spelling(8, "int8_t", torch="Char"),
    DataType.s32: Spelling(32, "int32_t"),
    DataType.e4m3: Spelling(8, "cutlass::float_e4m3_t", torch="Float8_e4m3fn"),
    DataType.f16: Spelling(16, "cutlass::half_t", torch="Half"),
    DataType.bf16: Spelling(16, "cutlass::bfloat16_t", torch="BFloat16"),
    DataType.f32: Spelling(32, "float", torch="Float"),
    VLLMDataType.u4b8: Spelling(4, "cutlass::vllm_uint4b8_t", scalar="vllm::kU4B8"),
    VLLMDataType.u8b128: Spelling(8, "cutlass::vllm_uint8b128_t", scalar="vllm::kU8B128"),
}

UNSIGNED = {4: DataType.u4, 8: DataType.u8}
"""The plain unsigned type of a width: prepacking moves bits and knows no bias."""


_NAMED = {str(one.value): one for one in SPELLINGS}


def named(name: str) -> AnyType:
    """Return the type with CUTLASS's short name `name`.

    Raises:
        KeyError: No type of Machete's has that name.
    """
    return _NAMED[name]
