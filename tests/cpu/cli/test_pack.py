"""`billhook pack`, from a checkpoint's folder to text and exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cpu.checkpoint.encoded import Written, compressed, gptq, gptq_config, packed, write_model
from cpu.checkpoint.written import LLAMA, MOE

from billhook.checkpoint import open_packed
from billhook.cli import main
from billhook.dtypes import F16

W4A8 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
W4A8_INPUTS = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Written:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = LLAMA | {"num_hidden_layers": 1}
    return write_model(folder, config, gptq_config(), gptq(), shards=2)


def test_packs_and_resumes(checkpoint: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["pack", str(checkpoint.folder), "-o", str(out), "--act", "f16", "--jobs", "2"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert re.fullmatch(rf"{out}: 4 GEMMs in 2 files; 0\.\d MB packed into 0\.\d MB, \d\.\d s\n", text)
    assert open_packed(out).activations == F16
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["modules"], found["written"], found["kept"], found["notes"]) == (4, 0, 2, [])


def test_says_what_stays_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = gptq_config(dynamic={r".*q_proj": {"group_size": 32}})

    def encode(rng: object, n: int, k: int) -> object:
        return gptq(group=32 if n == 256 and k == 256 else 64)(rng, n, k)  # type: ignore[arg-type]

    section["dynamic"][r".*o_proj"] = {"group_size": 32}
    (tmp_path / "in").mkdir()
    config = LLAMA | {"num_hidden_layers": 1}
    write_model(tmp_path / "in", config, section, encode)  # type: ignore[arg-type]
    assert main(["pack", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    assert "note: model.layers.0.self_attn.qkv_proj stays apart" in capsys.readouterr().out


def test_folds_scales_where_that_is_asked_for(
    checkpoint: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folded, section = tmp_path / "w4a8", compressed("pack-quantized", W4A8_INPUTS, **W4A8)
    folded.mkdir()
    write_model(folded, LLAMA | {"num_hidden_layers": 1}, section, packed(group=128))
    assert main(["pack", str(folded), "-o", str(tmp_path / "out"), "--fold"]) == 0
    assert {one.format for one in open_packed(tmp_path / "out").modules.values()} == {"w4a8"}
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out"), "--arch", "8.9"]) == 0
    text = capsys.readouterr().out
    assert "w4a8" in text and "marlin does not fold scales" in text and "where that is asked for" not in text
    assert main(["pack", str(checkpoint.folder), "-o", str(tmp_path / "other"), "--fold"]) == 2
    assert "there are no scales to fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--act", "f8"], "f8"), (["--device", "tpu"], "tpu"), (["--jobs", "0"], "--jobs"), ([], "--out")],
)
def test_refuses_wrong_options(
    checkpoint: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    out = ["-o", str(tmp_path / "out")] if arguments else []
    assert main(["pack", str(checkpoint.folder), *out, *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_damaged_checkpoint_is_exit_code_2(
    checkpoint: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint.folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["pack", str(checkpoint.folder), "-o", str(tmp_path / "out")]) == 2
    assert "model-00002-of-00002.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [LLAMA, MOE])
def test_inspect_shows_packed_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, object]
) -> None:
    (tmp_path / "in").mkdir()
    write_model(tmp_path / "in", config | {"num_hidden_layers": 2}, gptq_config(), gptq())
    assert main(["pack", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    found = []
    for folder in ("in", "out"):
        assert main(["inspect", str(tmp_path / folder), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    stored, packed = found
    assert {one["format"] for one in packed["layers"] if one["gemm"]} == {"packed u4b8"}
    assert [(one["name"], one["n"], one["k"], one["gemm"]) for one in packed["layers"] if one["gemm"]] == [
        (one["name"], one["n"], one["k"], one["gemm"]) for one in stored["layers"] if one["gemm"]
    ]
    assert [(one["name"], one["targets"]) for one in packed["gemms"]] == [
        (one["name"], one["targets"]) for one in stored["gemms"]
    ]
    sizes = packed["bytes"]
    assert sizes["quantized"] + sizes["unquantized"] + sizes["other"] == sizes["total"]
    modules = open_packed(tmp_path / "out").modules
    weights = sum(
        array.nbytes
        for name in modules
        for array in open_packed(tmp_path / "out").read(name).weight.tensors().values()
    )
    assert sizes["quantized"] == weights


def test_needs_no_torch(checkpoint: Written, tmp_path: Path) -> None:
    code = (
        "import sys; from billhook.cli import main; "
        "assert main(['pack', sys.argv[1], '-o', sys.argv[2]]) == 0; "
        "assert not {'torch', 'safetensors'} & set(sys.modules)"
    )
    arguments = [str(checkpoint.folder), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_cuda_needs_torch(
    checkpoint: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["pack", str(checkpoint.folder), "-o", str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "pack with --device cpu" in capsys.readouterr().err
