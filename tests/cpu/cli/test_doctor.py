from __future__ import annotations

import json
from pathlib import Path

import pytest

from billhook.build import toolchain
from billhook.cli import COMMANDS, doctor, main
from billhook.driver import Gpu
from billhook.errors import ToolchainError


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLHOOK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("billhook.driver.gpus", list)
    monkeypatch.setattr("billhook.driver.version", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda package: None)


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, dict[str, object]]]:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    return {"findings": {one["name"]: one for one in said["findings"]}, "commands": said["commands"]}


def test_every_command_has_its_needs() -> None:
    assert set(doctor._NEEDS) == set(COMMANDS) - {"doctor"}


def test_needs_are_things_that_are_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    named = {need for needs in doctor._NEEDS.values() for need in needs}
    assert named <= set(report(capsys)["findings"])


def test_a_machine_without_a_gpu_can_build_but_not_verify(capsys: pytest.CaptureFixture[str]) -> None:
    said = report(capsys)
    assert said["commands"]["build"] == {"ready": True, "missing": []}
    assert said["commands"]["verify"] == {"ready": False, "missing": ["NVIDIA driver", "GPU", "torch"]}
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "billhook[torch]" in text
    assert "needs NVIDIA driver, GPU, torch" in text


def test_a_machine_without_a_compiler_can_plan_but_not_build(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> toolchain.Compiler:
        raise ToolchainError("NVRTC was not found")

    monkeypatch.setattr(toolchain, "find_nvrtc", missing)
    said = report(capsys)
    assert said["commands"]["plan"]["ready"]
    assert said["commands"]["build"]["missing"] == ["NVRTC"]
    assert said["findings"]["NVRTC"]["remedy"] == "run: pip install 'billhook[cuda]'"


def test_gpus_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from billhook.arch import parse

    monkeypatch.setattr("billhook.driver.gpus", lambda: [Gpu("NVIDIA H100", parse("9.0a"), 132, 80 << 30)])
    assert report(capsys)["findings"]["GPU"]["detail"] == "NVIDIA H100 (9.0a, 132 SMs)"


@pytest.mark.parametrize(("cuda", "found"), [("12.9", False), ("13.0", True), ("14.1", True)])
def test_a_driver_must_know_the_machine_code_of_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cuda: str, found: bool
) -> None:
    monkeypatch.setattr("billhook.driver.version", lambda: cuda)
    said = report(capsys)
    assert said["findings"]["NVIDIA driver"]["found"] == found
    assert ("NVIDIA driver" in said["commands"]["verify"]["missing"]) != found
    assert main(["doctor"]) == 0
    assert ("580 or later" in capsys.readouterr().out) != found


def test_a_cache_folder_that_is_a_file_is_no_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("")
    said = report(capsys)
    assert not said["findings"]["kernel cache"]["found"]
    assert said["commands"]["build"]["missing"] == ["kernel cache"]
