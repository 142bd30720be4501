"""The comparison of decoding runs on the CPU, and finds both models at the same distance from the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cpu.scripts import imported

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
transformers = pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

import numpy as np  # noqa: E402

from billhook.formats.host import dequantize, quantize  # noqa: E402
from billhook.measure import machine  # noqa: E402
from billhook.ops import pack_quantized, unpack_weight  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402


@pytest.fixture(scope="module")
def decode() -> Iterator[Any]:
    with imported("decode") as module:
        yield module


def test_both_models_are_as_near_to_the_truth(
    decode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_commit", lambda: "abc1234")
    file = tmp_path / "records.jsonl"
    found = decode.main(["--device", "cpu", "--steps", "6", "--format", "mxfp4", "--record", str(file)])
    distance = {name: found[f"{name}_to_f32"]["relative_rms"] for name in ("packed", "bf16")}
    assert 0 < distance["packed"] <= 1.5 * distance["bf16"] < 0.05
    assert found["layers_gib"]["packed"] < found["layers_gib"]["bf16"] < found["layers_gib"]["f32"]
    written = json.loads(file.read_text())
    assert written["packed_to_bf16"] == found["packed_to_bf16"]
    assert (written["commit"], written["transformers"]) == ("abc1234", transformers.__version__)


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_other_models_multiply_is_what_is_packed(decode: Any, name: str) -> None:
    value = quantize(np.random.default_rng(0).standard_normal((256, 96)), name)
    packed = pack_quantized(value, dtype=torch.bfloat16)
    want = torch.from_numpy(dequantize(unpack_weight(packed), np.float32)).T
    assert torch.equal(decode.dequantize(value, torch.device("cpu")), want)


def test_the_first_step_that_differs_is_found(decode: Any) -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    other = tokens.clone()
    assert decode.first_difference(tokens, other) is None
    other[1, 2] = 0
    assert decode.first_difference(tokens, other) == 2


def test_differences_of_logits_are_summed_up(decode: Any) -> None:
    difference = decode.Difference()
    difference.add(torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]]))
    assert difference.report() == {
        "largest": 2.0,
        "relative_rms": round((6 / 20) ** 0.5, 6),
        "same_choice": 0.5,
        "largest_gap": 2.0,
    }
