"""bench/pack.py runs on the host, and tells a wrong packing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cpu.scripts import imported

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with imported("pack") as module:
        yield module


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
    folded = next(one for one in written if one["format"] == "w4a8")
    assert folded["qkv_proj"]["bytes"] == 2 * (192 * 128 // 2 + 192)


@pytest.mark.parametrize("stored", ["compressed_tensors", "codes"])
def test_the_scales_of_channels_are_compared_too(bench: Any, stored: str) -> None:
    source = bench.draw(bench.FORMATS["w4a8"], stored, 192, 128, torch.Generator("cpu").manual_seed(0))
    packed = source.pack()
    bench.check(packed, source)
    with pytest.raises(SystemExit, match="channel_scales differ"):
        bench.check(replace(packed, channel_scales=packed.channel_scales * 2), source)


def test_a_wrong_packing_stops_it(bench: Any) -> None:
    generator = torch.Generator("cpu").manual_seed(0)
    source = bench.draw(bench.FORMATS["u4"], "awq", 192, 128, generator)
    packed = source.pack()
    bench.check(packed, source)
    packed.codes[-1, 0, 0, 0, 0] ^= 1
    with pytest.raises(SystemExit, match="u4 from awq, n=192 k=128: codes differ"):
        bench.check(packed, source)
