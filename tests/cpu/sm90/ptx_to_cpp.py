"""CUDA C++ as C++ that runs on the CPU: asm statements become calls of the functions in `sm90.hpp`.

`asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));` becomes `fma_rn_f16x2(v, a, b, c);`.
Operands in braces become an array of pointers, predicates and temporary registers variables. An instruction
that the model lacks is an error of the C++ compiler, which names it.

Source: PTX ISA 9.0, "Syntax"; GCC manual, "Extended Asm".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ASM = re.compile(r"\basm\s*(?:volatile\s*)?\(")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r'\s*"([^"]*)"\s*\((.*)\)\s*', re.DOTALL)
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+__align__\((\d+)\)\s+char\s+(\w+)\[\];")
_WGMMA = re.compile(r"(wgmma\.mma_async\.sync\.aligned)\.m64n(\d+)k(\d+)\.(\w+)\.(\w+)\.(\w+)")
_REGISTERS = {"pred": "bool", "b16": "u16", "b32": "u32"}


def translate(text: str) -> str:
    """Return preprocessed CUDA C++ without asm statements and declarations of dynamic shared memory."""
    text = _DYNAMIC_SHARED.sub(r"char* const \2 = cpu::dynamic_shared<\1>();", text)
    parts, at = [], 0
    for found in _ASM.finditer(text):
        inner, end = _balanced(text, found.end())
        parts += [text[at : found.start()], _statement(inner)]
        at = end
    return "".join([*parts, text[at:]])


def _balanced(text: str, start: int) -> tuple[str, int]:
    """Return what lies between parentheses, the first one being before `start`, and where it ends."""
    depth = 1
    for at in _outside_literals(text, start):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at], at + 1
    raise ValueError(f"no end of {text[start : start + 80]!r}")


def _outside_literals(text: str, start: int = 0) -> Iterator[int]:
    at = start
    while at < len(text):
        literal = _LITERAL.match(text, at)
        if literal:
            at = literal.end()
            continue
        yield at
        at += 1


def _split(text: str, separator: str) -> list[str]:
    """Split at separators that are in no parentheses, braces, brackets and literals."""
    depth, pieces, begin = 0, [], 0
    for at in _outside_literals(text):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if text[at] == separator and depth == 0:
            pieces.append(text[begin:at])
            begin = at + 1
    return [*pieces, text[begin:]]


def _statement(inner: str) -> str:
    template, *lists = _split(inner, ":")
    bound: list[str] = []
    for operand in [one for each in lists[:2] for one in _split(each, ",") if one.strip()]:
        found = _OPERAND.fullmatch(operand)
        if found is None:
            raise ValueError(f"not an operand: {operand!r}")
        constraint, expression = found.groups()
        kind = "auto&" if constraint[0] in "=+" else "const auto"  # inputs are read here, as asm reads them
        bound.append(f"{kind} _{len(bound)} = ({expression});")
    ptx = "".join(_LITERAL.findall(template)).replace("\\n", "\n")
    ptx = ptx.strip().removeprefix("{").removesuffix("}") if ptx.strip().startswith("{") else ptx
    return f"{{ {' '.join(bound)} {' '.join(_instruction(one) for one in ptx.split(';') if one.strip())} }}"


def _instruction(text: str) -> str:
    text = text.strip()
    label = re.match(r"(\w+):\s*", text)
    if label:
        return f"{label[1]}: {_instruction(text[label.end() :])}"
    guard = re.match(r"@(!?)(\w+)\s+", text)
    if guard:
        return f"if ({guard[1]}ptx_{guard[2]}) {_instruction(text[guard.end() :])}"
    opcode, _, rest = text.partition(" ")
    if opcode == ".reg":
        kind, _, names = rest.strip().partition(" ")
        return f"{_REGISTERS[kind[1:]]} {', '.join(f'ptx_{name.strip()}' for name in names.split(','))};"
    if opcode == "bra":
        return f"goto {rest.strip()};"
    operands = ", ".join(_value(one) for one in _split(rest, ",") if one.strip())
    wgmma = _WGMMA.fullmatch(opcode)
    if wgmma:
        name, n, k, *types = wgmma.groups()
        return f"cpu::{_name(name)}<{n}, {k}, {', '.join(f'cpu::{one}' for one in types)}>({operands});"
    return f"cpu::{_name(opcode)}({operands});"


def _name(opcode: str) -> str:
    return re.sub(r"[.:]+", "_", opcode.replace(".shared::cta", ".shared"))  # the default


def _value(text: str) -> str:
    text = text.strip()
    if text.startswith("["):
        return ", ".join(_value(one) for one in _split(text[1:-1], ","))
    if text.startswith("{"):
        return f"cpu::registers({', '.join(_value(one) for one in _split(text[1:-1], ','))})"
    if text.startswith("%%"):
        return f"cpu::{text[2:]}()"
    if text.startswith("%"):
        return f"_{text[1:]}"
    return text if text[0].isdigit() or text == "_" else f"ptx_{text}"
