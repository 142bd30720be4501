"""bench/quantize.py runs on the host, and tells wrong codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpu.scripts import imported

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

SMALL = ["--rows", "2,80", "--k", "64", "--n", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with imported("quantize") as module:
        yield module


def test_every_case_is_measured_and_recorded(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    bench.main([*SMALL, "--record", str(file)])
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(one["rows"], one["to"], one["scale"]) for one in written} == {
        (rows, to, scale) for rows in (2, 80) for to in ("e4m3fn", "s8") for scale in ("token", "static")
    }
    assert all(one["quantize_us"] > 0 and one["gemm_us"] > 0 for one in written)


def test_what_was_measured_before_a_failure_is_recorded(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, check, seen = tmp_path / "records.jsonl", bench.check, []

    def stop_at_the_third(case: Any) -> None:
        seen.append(case)
        if len(seen) == 3:
            raise KeyboardInterrupt
        check(case)

    monkeypatch.setattr(bench, "check", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        bench.main([*SMALL, "--record", str(file)])
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["to"], one["scale"]) for one in written] == [("e4m3fn", "token"), ("e4m3fn", "static")]


def test_bytes_are_those_of_activations_codes_and_scales(bench: Any) -> None:
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    assert bench.Case([x], None, torch.int8, None).nbytes == 3 * (64 * 2 + 64 + 4)


def test_wrong_codes_stop_it(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Any, copy: int = 0) -> Any:
        codes, scales = case.plainly(copy)
        codes[-1, -1] += 1
        return codes, scales

    monkeypatch.setattr(bench.Case, "quantize", wrong)
    with pytest.raises(SystemExit, match=r"\(2, 64\) to torch.int8: the last rows differ"):
        bench.check(bench.Case([torch.zeros(2, 64, dtype=torch.bfloat16)], None, torch.int8, None))
