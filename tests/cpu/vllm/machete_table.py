"""Machete's types, schedules and rules as published: what the generator must equal."""

from __future__ import annotations

import re
from itertools import product

# (a, b, group scale, group zero point, channel scale, token scale, out, accumulator)
TYPES = [(a, b, a, "void", "void", "void", a, "f32") for b in ("u4b8", "u8b128") for a in ("f16", "bf16")] + [
    (a, b, a, a, "void", "void", a, "f32") for b in ("u4", "u8") for a in ("f16", "bf16")
]
QQQ_TYPES = [
    (a, "u4b8", scale, "void", "f32", "f32", "f16", accumulator)
    for a, accumulator in (("s8", "s32"), ("e4m3", "f32"))
    for scale in ("f16", "void")
]
FIELDS = (
    "a_type",
    "b_type",
    "with_group_scale_type",
    "with_group_zeropoint_type",
    "with_channel_scale_type",
    "a_token_scale_type",
    "out_type",
    "accumulator_type",
)
FORMATS = {"u4b8": "gptq-int4", "u8b128": "gptq-int8", "u4": "awq-int4", "u8": "awq-int8"}
BITS = {"u4b8": 4, "u8b128": 8, "u4": 4, "u8": 8}

TERSE = "TmaMI__TmaCoop_streamK"


def published_choice(m: int, n: int, k: int) -> str:  # noqa: PLR0912
    """Return tile and cluster by the published rules, one after the other."""
    if m > 256 and k <= 16384 and n <= 4096:
        return "128x128_2x1x1"
    if m > 256:
        return "128x256_2x1x1"
    if m > 128 and k <= 4096 and n <= 4096:
        return "128x64_2x1x1"
    if m > 128 and k <= 8192 and n <= 8192:
        return "128x128_2x1x1"
    if m > 128:
        return "128x256_2x1x1"
    if m > 64 and k <= 4069 and n <= 4069:
        return "128x32_2x1x1"
    if m > 64 and k <= 4069 and n <= 8192:
        return "128x64_2x1x1"
    if m > 64 and k >= 8192 and n >= 12288:
        return "256x128_2x1x1"
    if m > 64:
        return "128x128_2x1x1"
    if m > 32 and k <= 6144 and n <= 6144:
        return "128x16_1x1x1"
    if m > 32 and k >= 16384 and n >= 12288:
        return "256x64_2x1x1"
    if m > 32:
        return "128x64_2x1x1"
    if m > 16 and k <= 12288 and n <= 8192:
        return "128x32_2x1x1"
    if m > 16:
        return "256x32_2x1x1"
    return "256x16_1x1x1" if n >= 26624 else "128x16_1x1x1"


SCHEDULES = [
    "128x128_2x1x1",
    "128x256_2x1x1",
    "128x64_2x1x1",
    "128x32_2x1x1",
    "256x128_2x1x1",
    "128x16_1x1x1",
    "256x64_2x1x1",
    "256x32_2x1x1",
    "256x16_1x1x1",
]

_M = (1, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 4096)
_NK = (4068, 4069, 4070, 4095, 4096, 4097, 6143, 6144, 6145, 8191, 8192, 8193, 12287, 12288, 12289)
_N = (128, *_NK, 26623, 26624, 26625)
_K = (128, *_NK, 16383, 16384, 16385)
GRID = list(product(_M, _N, _K))  # a step to either side of every constant


def symbols(types: list[tuple[str, ...]]) -> list[str]:
    """Return the implementations' symbols, in the generator's order."""
    return [f"impl_{''.join(one)}_sch_{sch}_{TERSE}" for one in types for sch in SCHEDULES]


def defined(text: str) -> list[str]:
    """Return the symbols that a generated file defines."""
    return re.findall(r"^[\w:]+ (impl_\w+)\(MMArgs args\) \{$", text, re.MULTILINE)


def declared(text: str) -> list[str]:
    """Return the symbols that a generated file declares."""
    return re.findall(r"^extern [\w:]+ (impl_\w+)\(MMArgs\);$", text, re.MULTILINE)
