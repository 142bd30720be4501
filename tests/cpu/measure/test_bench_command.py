import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cpu.measure.made_records import make_case, make_record

from billhook.catalog import Shape, load
from billhook.cli import main
from billhook.config import Tile
from billhook.measure.ours import parse_tile
from billhook.measure.record import append


@pytest.fixture
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


def test_every_tile_is_read_as_it_is_written() -> None:
    for shape in load().shapes:
        assert parse_tile(str(shape)) == (shape, True)
        assert parse_tile(shape.name) == (shape, False)
    turns = Shape("machete", Tile(64, 128, 128, 5, 2, pingpong=True), grouped=True)
    for shape in (turns, replace(turns, tile=replace(turns.tile, cluster=1))):
        assert parse_tile(str(shape)) == (shape, True)
        assert parse_tile(shape.name)[0].name == shape.name


@pytest.mark.usefixtures("_no_torch")
def test_no_gpu_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--shape", "4096x4096"]) == 1
    assert "pip install 'billhook[cuda,torch]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say what to measure"),
        (["--shape", "4096"], "NxK"),
        (["--shape", "64x64", "--m", "0"], "token counts"),
        (["--shape", "64x64", "--experts", "8"], "num_experts and top_k together"),
        (["--shape", "64x64", "--group-size", "7"], "group_size of u4b8 must be 128 or"),
        (["--shape", "64x64", "--group-size", "a"], "--group-size takes numbers"),
        (["--shape", "64x64", "--contestants", "ours,cudnn"], "contestants are read, ours"),
        (["--shape", "64x64", "--tile", "m16"], "write it like m16n128k256"),
        (["--shapes", "/nowhere.toml"], "cannot be read"),
        (["--model", "/nowhere"], "/nowhere"),
        (["run.jsonl"], "--report, --tune or --fit"),
        (["--report"], "name the record files"),
        (["--report", "/nowhere.jsonl"], "cannot be read"),
        (["--shape", "64x64", "--rounds", "1"], "--rounds"),
        (["--shape", "64x64", "--act", "fp8"], "unknown element type 'fp8'"),
        (["--shape", "64x64", "--format", "u5"], "known: u4b8"),
        (["--shape", "64x64", "--format", "mxfp4", "--act", "f16"], "mxfp4 weights are multiplied by bf16"),
        (["--shape", "64x64", "--format", "nvfp4", "--group-size", "32"], "group_size of nvfp4 must be 16"),
        (["--model", "examples/models/x", "--format", "u4"], "--model says formats"),
        (["--model", "examples/models/x", "--act", "s8"], "bf16 or f16"),
    ],
)
def test_wrong_input_is_refused_before_a_gpu_is_needed(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("_no_torch")
def test_report_and_tune_need_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    case = make_case(16)
    tile = make_record("ours:m16n128k256s4", 8.5, case)
    append(path, [make_record("ours", 9.0, case), make_record("marlin", 10.0, case), tile])
    assert main(["bench", "--report", "--tune", str(path)]) == 0
    out = capsys.readouterr().out
    assert "0.90" in out
    assert 'tile = "m16n128k256"' in out


def test_tuning_needs_tile_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    append(path, [make_record("ours", 9.0)])
    assert main(["bench", "--tune", str(path)]) == 2
    assert "--all-tiles" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_torch")
def test_fitting_needs_records_of_tiles_whose_work_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.jsonl"
    append(path, [make_record("ours", 9.0), make_record("ours:m16n128k256s4", 8.5)])
    assert main(["bench", "--fit", str(path)]) == 2
    assert "--tile machete-m128n128k128" in capsys.readouterr().err
    cases = [make_case(m, n=n, k=k) for n, k in ((4096, 4096), (8192, 2048)) for m in (16, 100, 300, 1000)]
    append(path, [make_record("ours:machete-m64n128k128s4", 0.1 * one.m + one.k / 400, one) for one in cases])
    assert main(["bench", "--fit", str(path)]) == 0
    assert 'tile = "machete-m64n128k128"\nactivations = 16\nlaunch = ' in capsys.readouterr().out
