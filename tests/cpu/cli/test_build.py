from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cpu.build.stand_in import unit

from billhook.arch import Arch
from billhook.build import Bundle, Cache, Unit, make
from billhook.build import compile as compiling
from billhook.cli import main
from billhook.config import KernelConfig
from billhook.emit import SourceFile, support_name
from billhook.families import threads

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "examples/models/qwen3-30b-a3b-gptq-int4/config.json"
FEW = [str(MODEL), "--max-tokens", "1"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put kernels that compile in a moment in the place of the planned ones, and use the tests' own cache."""

    def small(config: KernelConfig) -> Unit:
        return Unit(config.name, "gemm", config.arch, unit(config.name).source, threads(config))

    monkeypatch.setattr(make, "kernel_unit", small)
    monkeypatch.setattr(
        make, "support_unit", lambda part, arch: unit(support_name(part, arch), target=str(arch))
    )
    monkeypatch.setenv("BILLHOOK_CACHE_DIR", str(cache))


# Ctrl-C must count even where the tests run in the background, which ignores it.
_RUN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from billhook.cli import main
raise SystemExit(main())
"""


def start(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    """Start a build of the real kernels in a process of its own."""
    environment = {**os.environ, "BILLHOOK_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", _RUN, "build", "--jobs", "1", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_a_model_becomes_a_bundle_and_the_second_run_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    assert main(["build", *FEW, "--out", str(out)]) == 0
    bundle = Bundle.load(out)
    said = capsys.readouterr()
    for kernel in bundle.manifest.kernels:
        assert kernel.name in said.out
        assert kernel.name in said.err
        assert bundle.cubin(kernel.name).startswith(b"\x7fELF")
    assert {kernel.kind for kernel in bundle.manifest.kernels} == {"gemm", "support"}
    for heading in ("registers", "shared", "spills", "cubin", "compile", "needed by", "qkv", "w13"):
        assert heading in said.out
    monkeypatch.setattr(compiling, "compile_text", None)
    assert main(["build", *FEW, "--out", str(out)]) == 0
    assert ", 0 compiled" in capsys.readouterr().out


def test_json_tells_programs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", *FEW, "--out", str(tmp_path / "bundle"), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["failures"] == []
    assert outcome["bundle"] == str(tmp_path / "bundle")
    for kernel in outcome["kernels"]:
        assert kernel["registers"] > 0
        assert kernel["cubin_bytes"] > 0
    assert any(layer.endswith("/w2") for kernel in outcome["kernels"] for layer in kernel["needed_by"])


def test_a_bundle_says_how_many_multiprocessors_it_is_for(tmp_path: Path) -> None:
    for more, count in (([], 132), (["--multiprocessors", "114"], 114)):
        assert main(["build", *FEW, *more, "--out", str(tmp_path / "bundle")]) == 0
        manifest = Bundle.load(tmp_path / "bundle").manifest
        assert manifest.options["multiprocessors"] == str(count)
        assert manifest.plan.multiprocessors == count


def break_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the routing kernels fail to compile."""

    def broken(part: str, arch: Arch) -> Unit:
        if part != "route":
            return unit(support_name(part, arch), target=str(arch))
        return Unit("route_broken", "support", arch, SourceFile("route_broken.cu", "oops;\n"))

    monkeypatch.setattr(make, "support_unit", broken)


def test_a_kernel_that_fails_is_named_with_the_compilers_words_and_leaves_no_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_routing(monkeypatch)
    out = tmp_path / "bundle"
    assert main(["build", *FEW, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "route_broken.cu did not compile for sm_90a" in said.err
    assert "this declaration has no storage class or type specifier" in said.err
    assert "1 of" in said.err
    assert "_moe_sm90a" in said.out  # the others are finished
    assert list(tmp_path.iterdir()) == []
    assert main(["build", *FEW, "--out", str(out), "--json"]) == 1
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["bundle"] is None
    assert outcome["failures"][0]["name"] == "route_broken"
    assert "storage class" in outcome["failures"][0]["log"]


def test_a_kernel_that_fails_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bundle"
    assert main(["build", *FEW, "--out", str(out)]) == 0
    old = Bundle.load(out)
    break_routing(monkeypatch)
    assert main(["build", *FEW, "--out", str(out)]) == 1
    assert Bundle.load(out) == old


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "abc"], "abc"),
        (["--arch", ""], "no GPU architecture"),
        (["--arch", "7.0"], "7.0"),
        (["--arch", "native"], "native"),
        (["--tp", "0"], "--tp"),
        (["--tp", "two"], "'two'"),
        (["--jobs", "0"], "jobs"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--act", "f32"], "f32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_refused_before_anything_is_done(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("billhook.driver.gpus", list)
    assert main(["build", str(MODEL), "--out", str(tmp_path / "bundle"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_refused_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    monkeypatch.setattr(compiling, "compile_text", None)
    assert main(["build", *FEW, "--out", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_place_inside_a_file_is_refused_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiling, "compile_text", None)
    assert main(["build", *FEW, "--out", str(tmp_path / "file/bundle")]) == 2
    assert f"{tmp_path / 'file'} is not a folder; choose another with --out" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "compile_text", None)
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)  # root may write everywhere
    assert main(["build", *FEW, "--out", str(tmp_path / "deep/bundle")]) == 1
    assert f"cannot write to {tmp_path}," in capsys.readouterr().err


def test_a_name_that_is_too_long_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", *FEW, "--out", str(tmp_path / ("a" * 300))]) == 1
    assert "File name too long; choose another with --out" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_told_without_a_traceback() -> None:
    command = [sys.executable, "-m", "billhook", "plan", str(MODEL), "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "billhook: error: cannot write the output: No space left on device\n"


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BILLHOOK_CACHE_DIR", str(tmp_path / "file"))
    assert main(["build", *FEW, "--out", str(tmp_path / "bundle")]) == 1
    assert "BILLHOOK_CACHE_DIR" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_an_interrupt_ends_with_130_and_keeps_finished_kernels(tmp_path: Path) -> None:
    process = start(str(MODEL), "--out", str(tmp_path / "bundle"), cache=tmp_path / "cache")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("[1/")  # the first kernel is finished
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; finished work is kept" in said
    assert "Traceback" not in said
    assert Cache(tmp_path / "cache").measure()[0] >= 1
    assert not (tmp_path / "bundle").exists()


def test_two_builds_at_once_into_one_cache_and_one_bundle(tmp_path: Path) -> None:
    processes = [start(*FEW, "--out", str(tmp_path / "bundle"), cache=tmp_path / "cache") for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    Bundle.load(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "cache"]
