from __future__ import annotations

from pathlib import Path

import pytest

from billhook.build.headers import included_headers
from billhook.errors import CompileError


def write(root: Path, **texts: str) -> None:
    for name, text in texts.items():
        (root / f"{name}.cuh").write_text(text)


def test_headers_of_headers_are_found_once_and_sorted(tmp_path: Path) -> None:
    write(
        tmp_path,
        a='#include "c.cuh"\n#include "b.cuh"\n',
        b="#  include <c.cuh>  // again\n",
        c="#pragma once\n",
        unused="int x;\n",
    )
    found = included_headers('#include "a.cuh"\n', tmp_path)
    assert list(found) == ["a.cuh", "b.cuh", "c.cuh"]
    assert found["c.cuh"] == "#pragma once\n"


def test_headers_that_include_each_other_end(tmp_path: Path) -> None:
    write(tmp_path, a='#include "b.cuh"\n', b='#include "a.cuh"\n')
    assert list(included_headers('#include "a.cuh"', tmp_path)) == ["a.cuh", "b.cuh"]


def test_a_missing_header_is_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"nowhere\.cuh"):
        included_headers('#include "nowhere.cuh"\n', tmp_path)


def test_a_comment_that_speaks_of_includes_is_no_include(tmp_path: Path) -> None:
    assert included_headers('// see #include "nowhere.cuh"\n', tmp_path) == {}
