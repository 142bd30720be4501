"""Checkpoints packed on the GPU are, to the byte, those packed on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("safetensors", reason="needs the safetensors package to write checkpoints")
pytest.importorskip("torch", reason="needs torch")

from cpu.checkpoint.encoded import ALL, write_model
from cpu.checkpoint.written import LLAMA, MOE

from billhook.cli import main

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("config", [LLAMA, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("name", ALL)
def test_packs_as_the_host_does(tmp_path: Path, name: str, config: dict[str, object]) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    _, section, encode = ALL[name]
    write_model(folder, config | {"num_hidden_layers": 1}, section, encode)
    packed = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        assert main(["pack", str(folder), "-o", str(out), "--device", device]) == 0
        packed.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert packed[0] == packed[1]
