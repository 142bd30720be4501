"""`billhook bench` on the GPU: every output checked, records whole. Times themselves are not judged."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from billhook.cli import main  # noqa: E402
from billhook.measure.record import read  # noqa: E402
from billhook.weights import FORMATS  # noqa: E402

pytestmark = pytest.mark.gpu

WIDE = [name for name, held in FORMATS.items() if held.activations]  # multiplied by 16-bit activations
FLOORS = ["--bandwidth", "3", "--tflops", "800"]  # for GPUs that have no measured peak


@pytest.mark.parametrize("experts", [[], ["--experts", "8", "--top-k", "2"]])
def test_bench_checks_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experts: list[str]
) -> None:
    path = tmp_path / "run.jsonl"
    arguments = [
        "--shape",
        "512x1024",
        "--m",
        "1,33",
        "--tile",
        "m16n128k256",
        "--rounds",
        "3",
        "--out",
        str(path),
    ]
    assert main(["bench", *arguments, *experts, *FLOORS]) == 0, capsys.readouterr().out
    records = list(read([path]))
    assert {one.case.tokens for one in records} == {1, 33}
    timed = {one.contestant for one in records if one.times}
    wanted = {"read", "ours", "ours:m16n128k256s3"} | ({"torch"} if not experts else set())
    assert wanted <= timed, [(one.contestant, one.skipped) for one in records if one.skipped]
    assert all(one.error is not None and one.error < 0.01 for one in records if one.times)
    assert "ours/best" in capsys.readouterr().out


@pytest.mark.parametrize("experts", [[], ["--experts", "8", "--top-k", "2"]])
def test_bench_compares_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experts: list[str]
) -> None:
    path = tmp_path / "run.jsonl"
    who = ["--contestants", "ours,torch", "--rounds", "3", "--out", str(path)]
    shape = ["--shape", "512x1024", "--m", "8", *experts, *FLOORS]
    assert main(["bench", *shape, *who, "--format", "all"]) == 0, capsys.readouterr().out
    ours = {one.case.format: one for one in read([path]) if one.contestant == "ours"}
    assert ours.keys() == set(WIDE)
    assert all(one.error is not None and one.error < 0.005 for one in ours.values())
    out = capsys.readouterr().out
    assert all(f"bf16 x {name} g" in out for name in WIDE)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="8-bit activations need wgmma, on GPUs of 9.0",
)
def test_bench_measures_8_bit_activations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.jsonl"
    who = ["--contestants", "ours,torch", "--rounds", "3", "--out", str(path)]
    assert (
        main(["bench", "--shape", "512x1024", "--m", "1024", *who, *FLOORS, "--act", "bf16,e4m3fn,s8"]) == 0
    )
    timed = {(one.case.types.split("_")[0], one.contestant) for one in read([path]) if one.times}
    assert {("e4m3fn", "ours"), ("s8", "ours"), ("bf16", "ours"), ("e4m3fn", "torch")} <= timed
    assert "times as fast, 1024 tokens and more" in capsys.readouterr().out
    path.unlink()
    folded = ["--shape", "512x1024", "--m", "8,1024", *who, *FLOORS, "--format", "w4a8", "--act", "e4m3fn"]
    assert main(["bench", *folded]) == 0
    assert {one.contestant for one in read([path]) if one.times} == {"ours", "torch"}
