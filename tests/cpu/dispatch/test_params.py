"""The struct that Python packs is the struct that the kernels read."""

import re
import struct
from pathlib import Path

import billhook
from billhook.dispatch import params

HEADER = Path(billhook.__file__).parent / "cuda/billhook/kernel/params.cuh"


def fields() -> list[tuple[str, str]]:
    body = re.search(r"struct GemmParams \{(.*?)\n\};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    found = []
    for line in filter(None, (line.partition("//")[0].strip() for line in body[1].splitlines())):
        match = re.fullmatch(r"(?P<type>(?:const )?\w+\*?) (?P<name>\w+);", line)
        assert match is not None, line
        found.append((match["type"], match["name"]))
    return found


def test_the_header_and_python_name_the_same_fields_in_the_same_order() -> None:
    assert [name for _, name in fields()] == [*params.POINTERS, *params.NUMBERS]


def test_every_field_has_the_size_and_offset_that_the_compiler_gives_it() -> None:
    kinds = ["P" if kind.endswith("*") else "i" for kind, _ in fields()]
    assert all(kind.endswith("*") or kind == "i32" for kind, _ in fields())
    assert kinds == ["P"] * len(params.POINTERS) + ["i"] * len(params.NUMBERS)
    # 0P: the compiler pads the end to the largest alignment
    native = struct.Struct("@" + "".join(kinds) + "0P")
    assert native.size == params.LAYOUT.size
