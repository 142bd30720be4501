"""Run straight-line PTX on the host: device headers are tested as the compiler reads them, without a GPU.

A register is a uint32 array, one element for each input at once. Only what the conversions of
`cuda/billhook/numeric` compile to is known; another instruction is an error that names it.

Source: PTX ISA 9.0, "Instruction Set".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from billhook.arch import parse
from billhook.build.headers import included_headers
from billhook.build.nvrtc import compile_text
from billhook.dtypes import E4M3FN
from billhook.formats import minifloat

Words = npt.NDArray[np.uint32]
_STEP = re.compile(r"^\s*([a-z][\w.]*)\s+([^;]*);", re.MULTILINE)
_PLACE = re.compile(r"\[(%\w+)(?:\+(\d+))?\]")
# type -> bits of precision, exponent of the smallest subnormal, numpy type
_FLOATS: dict[str, tuple[int, int, Any]] = {
    "f16x2": (11, -24, np.float16),
    "bf16x2": (8, -133, ml_dtypes.bfloat16),
}


@cache
def compile_body(body: str, arch: str = "8.0") -> str:
    """Return the PTX of a kernel `(const u32* in, u32* out)` with this body."""
    text = (
        '#include "billhook/numeric/folded.cuh"\n#include "billhook/numeric/minifloat.cuh"\n'
        '#include "billhook/numeric/narrow.cuh"\n'
        "using namespace billhook;\n"
        f'extern "C" __global__ void probe(const u32* in, u32* out) {{\n{body}\n}}\n'
    )
    return compile_text("probe.cu", text, included_headers(text), replace(parse(arch), ptx=True)).ptx


def run(ptx: str, inputs: npt.ArrayLike) -> Words:
    """Run a kernel of `compile_body` once for each row of inputs.

    Args:
        ptx: Its PTX.
        inputs: uint32 [runs, words]: what `in` points to.

    Returns:
        uint32 [runs, words]: what it wrote to `out`.
    """
    words = np.asarray(inputs, np.uint32)
    registers: dict[str, Any] = {}
    written: dict[int, Words] = {}

    def value(text: str) -> Any:
        name = text.strip("{}")
        if name in registers:
            return registers[name]
        return np.uint32(int(text, 0) & 0xFFFFFFFF)

    for name, arguments in _STEP.findall(ptx[ptx.index("{") :]):
        to, *rest = re.split(r",\s*", arguments)
        place = _PLACE.search(arguments)
        if name.startswith(("ld.param", "cvta")):
            registers[to] = name  # both pointers are at offset 0 of what they point to
        elif name == "ld.global.u32" and place:
            registers[to] = words[:, int(place[2] or 0) // 4]
        elif name == "st.global.u32" and place:
            written[int(place[2] or 0) // 4] = np.broadcast_to(value(rest[-1]), len(words))
        elif name in _INSTRUCTIONS:
            registers[to] = _INSTRUCTIONS[name](*map(value, rest))
        elif not name.startswith("."):
            raise NotImplementedError(f"no model of the PTX instruction {name} {arguments}")
    return np.stack([written[at] for at in range(len(written))], axis=1)


def values(words: Words, kind: str) -> npt.NDArray[np.float64]:
    """Return the two numbers in each word, the low one first: [.., 2]."""
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).astype(np.uint16)
    return halves.view(_FLOATS[kind][2]).astype(np.float64)


def bits(numbers: npt.NDArray[np.float64], kind: str) -> Words:
    """Round pairs of numbers [.., 2] to nearest even, once, and return them as words."""
    precision, smallest, element = _FLOATS[kind]
    exponent = np.frexp(np.where(np.isfinite(numbers), numbers, 0))[1] - precision
    spacing = np.ldexp(1.0, np.maximum(exponent, smallest))
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.where(np.isfinite(numbers), np.rint(numbers / spacing) * spacing, numbers)
        halves = rounded.astype(element).view(np.uint16).astype(np.uint32)
    return np.asarray(halves[..., 0] | halves[..., 1] << 16)


def _fma(kind: str) -> Callable[[Words, Words, Words], Words]:
    def fma(a: Words, b: Words, c: Words) -> Words:
        with np.errstate(invalid="ignore"):
            product = values(a, kind) * values(b, kind)  # 22 bits at most: exact in float64
            total = product + values(c, kind)
            lost = (total - product) - values(c, kind)
        if np.any(lost[np.isfinite(lost)]):
            raise ArithmeticError("the model's float64 does not hold this sum exactly")
        return bits(total, kind)

    return fma


def _max(a: Words, b: Words) -> Words:
    return bits(np.fmax(values(a, "bf16x2"), values(b, "bf16x2")), "bf16x2")


def _lop3(a: Words, b: Words, c: Words, table: Any) -> Words:
    found = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(c)), np.uint32)
    for row in range(8):
        if int(table) >> row & 1:
            found |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return found


def _prmt(a: Words, b: Words, selector: Any) -> Words:
    parts = [(word >> np.uint32(8 * i)) & np.uint32(0xFF) for word in (a, b) for i in range(4)]
    found = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b), np.shape(selector)), np.uint32)
    for at in range(4):
        choice = np.asarray(selector, np.uint32) >> np.uint32(4 * at) & np.uint32(0xF)
        if np.any(choice & 8):
            raise NotImplementedError("no model of prmt that repeats a sign")
        found |= np.choose(choice, parts) << np.uint32(8 * at)
    return found


def _to_e4m3(a: Words) -> Words:
    codes = minifloat.encode(values(a, "f16x2"), E4M3FN).astype(np.uint32)
    return np.asarray(codes[..., 0] | codes[..., 1] << 8)


def _from_e4m3(a: Words) -> Words:
    codes = np.stack([a & 0xFF, a >> 8 & 0xFF], axis=-1).astype(np.uint8)
    return bits(minifloat.decode(codes, E4M3FN).astype(np.float64), "f16x2")


_INSTRUCTIONS: dict[str, Callable[..., Any]] = {
    "mov.u32": lambda a: a,
    "and.b32": np.bitwise_and,
    "or.b32": np.bitwise_or,
    "xor.b32": np.bitwise_xor,
    "not.b32": np.invert,
    "shl.b32": np.left_shift,
    "shr.u32": np.right_shift,
    "add.s32": np.add,
    "sub.s32": np.subtract,
    "mul.lo.s32": np.multiply,
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
    "fma.rn.f16x2": _fma("f16x2"),
    "fma.rn.bf16x2": _fma("bf16x2"),
    "max.bf16x2": _max,
    "mov.b32": lambda low, high: low | high << 16,
    "cvt.u16.u32": lambda a: a & 0xFFFF,
    "cvt.rn.f16x2.e4m3x2": _from_e4m3,
    "cvt.rn.satfinite.e4m3x2.f16x2": _to_e4m3,
}
