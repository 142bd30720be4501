"""bench/pack.py runs on the host, and tells a wrong packing."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

PATH = Path(__file__).parents[3] / "bench/pack.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("bench_pack", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_format_and_form_is_measured_and_recorded(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    bench.main(["--size", "tiny", "--device", "cpu", "--rounds", "1", "--record", str(file)])
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(one["format"], one["stored"]) for one in written} == {
        (name, stored) for name, forms in bench.FORMS.items() for stored in forms
    }
    first = written[0]
    assert first["layer"]["bytes"] == first["qkv_proj"]["bytes"] + first["down_proj"]["bytes"]
    # GPTQ: codes of 4 bits and bf16 scales of groups of 128 are read, and written as often.
    assert first["qkv_proj"]["bytes"] == 2 * (192 * 128 // 2 + 192 * 2)


def test_a_wrong_packing_stops_it(bench: Any) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    source = bench.draw(bench.FORMATS["u4"], "awq", 192, 128, generator)
    packed = source.pack()
    bench.check(packed, source)
    packed.codes[-1, 0, 0, 0, 0] ^= 1
    with pytest.raises(SystemExit, match="u4 from awq, n=192 k=128: codes differ"):
        bench.check(packed, source)
