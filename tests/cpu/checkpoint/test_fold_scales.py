"""Scales of groups folded into weights: where the config asks for e4m3 activations, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu.checkpoint.encoded import ALL, compressed, packed, write_model
from cpu.checkpoint.written import LLAMA, MOE

from billhook.checkpoint import open_checkpoint, open_packed, pack_checkpoint
from billhook.dtypes import BF16, F16
from billhook.errors import ConfigError, UnsupportedError
from billhook.formats import host
from billhook.models import layers, load_model

ONE = LLAMA | {"num_hidden_layers": 1}
ONE_MOE = MOE | {"num_hidden_layers": 1}
E4M3 = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token", "symmetric": True}
INTS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}


def write(folder: Path, config: dict[str, Any] = ONE, **weights: Any) -> Path:
    folder.mkdir()
    wanted = INTS | weights
    form = packed(
        bits=wanted["num_bits"], group=wanted["group_size"], symmetric=wanted.get("symmetric", True)
    )
    write_model(folder, config, compressed("pack-quantized", E4M3, **wanted), form)
    return folder


@pytest.mark.parametrize("config", [ONE, ONE_MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("act", [F16, BF16])
def test_a_folded_checkpoint_is_packed_with_its_codes_as_they_are(
    tmp_path: Path, config: dict[str, Any], act: Any
) -> None:
    folder, out = write(tmp_path / "in", config), tmp_path / "out"
    exact, folded = open_checkpoint(folder), open_checkpoint(folder, fold=True)
    pack_checkpoint(folder, out, act, fold=True)
    read = open_packed(out)
    assert list(read.modules) == list(folded.modules) == list(exact.modules)
    for name, fused in read.modules.items():
        assert fused == folded.modules[name]
        assert (fused.format, exact.modules[name].format) == ("w4a8", "u4b8")
        want = host.join(host.fold(exact.read(name).parts))
        mine, theirs = read.read(name).weight.tensors(), host.pack(want).tensors()
        assert mine.keys() == theirs.keys() and "channel_scales" in mine
        assert all(mine[part].tobytes() == array.tobytes() for part, array in theirs.items())
        assert (host.unpack(read.read(name).weight).codes == exact.read(name).value.codes).all()
        near = host.dequantize(want) - host.dequantize(exact.read(name).value)
        assert 0 < np.abs(near).max() < 0.2 * np.abs(host.dequantize(want)).max()


def test_the_planner_knows_what_multiplies_folded_weights(tmp_path: Path) -> None:
    pack_checkpoint(write(tmp_path / "in"), tmp_path / "out", F16, fold=True)
    found = layers(load_model(tmp_path / "out"))
    assert {one.types for one in found} == {"e4m3fn_u4b8_e4m3fn_f16"}
    assert [one.name for one in found] == [one.name for one in layers(load_model(tmp_path / "in"))]


def test_without_being_asked_for_nothing_is_folded(tmp_path: Path) -> None:
    folder = write(tmp_path / "in")
    pack_checkpoint(folder, tmp_path / "out")
    assert {one.format for one in open_packed(tmp_path / "out").modules.values()} == {"u4b8"}
    with pytest.raises(ConfigError, match="was packed without folding scales; remove it"):
        pack_checkpoint(folder, tmp_path / "out", fold=True)
    pack_checkpoint(folder, tmp_path / "folded", fold=True)
    with pytest.raises(ConfigError, match="was packed with scales folded; remove it"):
        pack_checkpoint(folder, tmp_path / "folded")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"symmetric": False}, "got u4 in groups of 128"),
        ({"num_bits": 8}, "got u8b128 in groups of 128"),
        ({"group_size": 64}, "got u4b8 in groups of 64"),
    ],
)
def test_weights_that_cannot_be_folded_are_refused(
    tmp_path: Path, weights: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"down_proj: scales are folded of u4b8.*{words}.*as it is"):
        open_checkpoint(write(tmp_path / "in", **weights), fold=True)


@pytest.mark.parametrize("name", ["gptq", "packed", "fp8-static"])
def test_checkpoints_that_ask_for_no_e4m3_beside_groups_have_nothing_to_fold(
    tmp_path: Path, name: str
) -> None:
    _, section, encode = ALL[name]
    write_model(tmp_path, ONE, section, encode)
    with pytest.raises(UnsupportedError, match=r"config\.json: there are no scales to fold"):
        open_checkpoint(tmp_path, fold=True)
