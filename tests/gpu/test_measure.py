"""`billhook bench` on the GPU: every output checked, records whole. Times themselves are not judged."""

from pathlib import Path

import pytest

from billhook.cli import main
from billhook.measure.record import read

pytestmark = pytest.mark.gpu

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
