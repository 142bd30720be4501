"""Headers of safetensors files: what the format's own library writes is read, what is damaged is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cpu.checkpoint.written import save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billhook.checkpoint import read_header
from billhook.errors import WeightError


def file_of(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "damaged.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [end - begin] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["F32", "BF16", "U8", "F8_E4M3"]),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
        ),
        max_size=6,
    )
)
def test_reads_what_the_library_writes(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    save(tmp_path / "a.safetensors", tensors)
    found = read_header(tmp_path / "a.safetensors")
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in found} == tensors


def test_leaves_metadata_out_and_takes_padding(tmp_path: Path) -> None:
    text = json.dumps({"__metadata__": {"format": "pt"}, "a": entry(0, 2)}).encode() + b"   "
    assert [tensor.name for tensor in read_header(file_of(tmp_path, text, b"ab"))] == ["a"]


def test_reads_four_bit_elements(tmp_path: Path) -> None:
    (tensor,) = read_header(file_of(tmp_path, {"a": entry(0, 3, "F4", [2, 3])}, b"abc"))
    assert (tensor.bytes, str(tensor)) == (3, "F4 [2, 3]")


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", ["not JSON"]),
        (b"\xff", b"", ["not JSON"]),
        (b"[" * 5000, b"", ["not JSON"]),
        ([], b"", ["JSON object", "list"]),
        ({"\ud800": entry(0, 1)}, b"a", ["ud800", "surrogate"]),
        (b'{"a": 1, "a": 2}', b"", ["'a' occurs twice"]),
        ({"a": {"dtype": "U8"}}, b"", ["'a'", "data_offsets"]),
        ({"a": entry(0, 1) | {"more": 1}}, b"a", ["'a'", "more"]),
        ({"a": entry(0, 1, "U7")}, b"a", ["'a'", "U7"]),
        ({"a": entry(0, 1, shape=[-1])}, b"a", ["'a'", "[-1]"]),
        ({"a": entry(0, 1, shape=[True])}, b"a", ["'a'", "True"]),
        ({"a": entry(0, 1, shape=[10**40])}, b"a", ["'a'", "shape"]),
        ({"a": entry(0, 1) | {"data_offsets": [0]}}, b"a", ["'a'", "[0]"]),
        ({"a": entry(0, 1) | {"data_offsets": [1, 0]}}, b"a", ["'a'", "[1, 0]"]),
        ({"a": entry(0, 9)}, b"a", ["'a'", "[0, 9]", "truncated"]),
        ({"a": entry(0, 2, "F32", [1])}, b"ab", ["'a'", "2 bytes", "4 bytes"]),
        ({"a": entry(0, 3, "F4", [7])}, b"abc", ["'a'", "3 bytes", "4 bytes"]),
        ({"a": entry(0, 2), "b": entry(1, 3)}, b"abc", ["'b'", "'a'", "byte 1"]),
        ({"a": entry(0, 1), "b": entry(2, 3)}, b"abc", ["'b'", "1 to 2"]),
        ({"a": entry(0, 1)}, b"abc", ["1 to 3"]),
    ],
)
def test_refuses_damaged_headers(tmp_path: Path, header: Any, data: bytes, words: list[str]) -> None:
    with pytest.raises(WeightError) as caught:
        read_header(file_of(tmp_path, header, data))
    for word in ("damaged.safetensors", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("length", "word"), [(10**9, "not a safetensors file"), (9999, "truncated"), (2**63, "not a safetensors")]
)
def test_refuses_a_header_longer_than_the_file(tmp_path: Path, length: int, word: str) -> None:
    with pytest.raises(WeightError, match=word):
        read_header(file_of(tmp_path, {}, length=length))


def test_refuses_every_truncation(tmp_path: Path) -> None:
    save(tmp_path / "whole", {"a": ("F32", (2, 3)), "b": ("U8", (5,))})
    whole = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(WeightError, match="cut"):
            read_header(cut)
