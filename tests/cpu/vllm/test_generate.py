"""`billhook generate` and the documented script, as a build calls them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpu.vllm.trees import write_tree

from billhook.cli import main
from billhook.emit.manifest import MANIFEST
from billhook.errors import InputError
from billhook.vllm.documented import generate_new_kernels, remove_old_kernels, run_script

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "csrc" / "moe" / "marlin_moe_wna16" / "generate_kernels.py"


def generate(
    *words: object, target: str = "vllm-0.33", family: str = "marlin-moe", archs: str = "8.0"
) -> int:
    return main(["generate", "--target", target, "--family", family, "--arch", archs, *map(str, words)])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def run_python(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
    )


def test_script_writes_where_it_is_told_from_any_folder(tmp_path: Path) -> None:
    done = run_python(SCRIPT, "80,89", tmp_path / "out", PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out'}: 20 new\n"
    names = set(contents(tmp_path / "out"))
    assert {"sm80_kernel_float16_u4_float16.cu", "sm89_kernel_fe4m3fn_u4b8_float16.cu"} < names
    assert {"kernel_selector.h", MANIFEST} < names


def test_script_writes_beside_itself_without_a_folder(tmp_path: Path) -> None:
    script = tmp_path / "csrc" / "moe" / "marlin_moe_wna16" / SCRIPT.name
    script.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, script)
    assert run_python(script, "8.9").returncode == 0
    assert (script.parent / "kernel_selector.h").exists()
    assert script.read_bytes() == SCRIPT.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "expected ARCHS"),
        (["8.0", "out", "more"], 2, "expected ARCHS"),
        ([""], 2, "no GPU architecture given"),
        ([" ,; "], 2, "no GPU architecture given"),
        (["abc"], 2, "'abc' is not a GPU architecture"),
        (["7.0"], 2, "no kernels exist for 7.0"),
        (["8."], 2, "'8.' is not a GPU architecture"),
        (["-1.0"], 2, "'-1.0' is not a GPU architecture"),
        (["13.7"], 2, "'13.7' is not supported"),
        (["8.0,abc"], 2, "'abc' is not a GPU architecture"),
        (["8.0", ""], 2, "OUT_DIR is '', which names no folder"),
        (["8.0", "--out"], 2, "OUT_DIR is '--out', which names no folder"),
    ],
)
def test_script_refuses(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = tmp_path / "generate_kernels.py"
    generate_new_kernels("8.0", tmp_path)
    before = state(tmp_path)
    assert run_script("marlin-moe", arguments, beside) == code
    assert words in capsys.readouterr().err
    assert state(tmp_path) == before


def test_scripts_say_what_to_install(tmp_path: Path) -> None:
    for script in (SCRIPT, ROOT / "csrc" / "quantization" / "machete" / "generate.py"):
        bare = run_python("-I", "-S", script, tmp_path / "out", PYTHONPATH="")
        assert bare.returncode == 1
        assert f"-m pip install {ROOT}" in bare.stderr
        assert "Traceback" not in bare.stderr


def test_script_shows_its_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("marlin-moe", ["--help"], tmp_path / "generate_kernels.py") == 0
    assert "usage: generate_kernels.py ARCHS [OUT_DIR]" in capsys.readouterr().out


def test_spellings_of_targets_mean_the_same(tmp_path: Path) -> None:
    for number, archs in enumerate(
        ["80,89,90,120", "8.0;8.9 9.0a\t12.0f", "sm_80,8.9+PTX,9.0a,sm120", "7.0 8.0 8.9 12.0"]
    ):
        generate_new_kernels(archs, tmp_path / str(number))
        (tmp_path / str(number) / MANIFEST).unlink()
        assert contents(tmp_path / str(number)) == contents(tmp_path / "0")


def test_native_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("billhook.driver.native_archs", lambda: [])
    with pytest.raises(InputError, match="'native' needs a GPU"):
        generate_new_kernels("native", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_remove_old_kernels_spares_others(tmp_path: Path) -> None:
    generate_new_kernels("7.5,8.9", tmp_path)
    (tmp_path / "sm80_kernel_mine.cu").write_text("mine")
    (tmp_path / "sm80_kernel_float16_u4_float16.cu").write_text("// auto generated by generate_kernels.py\n")
    assert len(remove_old_kernels(tmp_path).removed) == 27
    assert [path.name for path in tmp_path.iterdir()] == ["sm80_kernel_mine.cu"]


def test_second_run_changes_nothing_and_renders_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from billhook.cli import main; code = main(sys.argv[1:]); "
        "print('jinja2' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    words = ["generate", "--target", "vllm-0.20", "--family", "marlin", "--arch", "8.0", "--out", tmp_path]
    first = run_python("-c", program, *words)
    before = state(tmp_path)
    second = run_python("-c", program, *words)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (first.stderr, second.stderr) == ("True\n", "False\n")
    assert second.stdout == f"{tmp_path}: 15 unchanged\n"
    assert state(tmp_path) == before


def test_output_does_not_depend_on_hash_seed_or_locale(tmp_path: Path) -> None:
    for number, (seed, locale) in enumerate([("0", "C"), ("1", "C.UTF-8"), ("12345", "POSIX")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run_python(SCRIPT, "7.5,8.9", folder, PYTHONHASHSEED=seed, LC_ALL=locale, PYTHONUTF8="0")
        assert done.returncode == 0
        assert contents(folder) == contents(tmp_path / "0")


def test_more_targets_touch_only_the_selector_and_new_files(tmp_path: Path) -> None:
    generate("--out", tmp_path)
    before = state(tmp_path)
    generate("--out", tmp_path, archs="8.0,7.5")
    after = state(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"kernel_selector.h", MANIFEST}
    generate("--out", tmp_path)
    assert {name for name in before if before[name] != state(tmp_path)[name]} == {
        "kernel_selector.h",
        MANIFEST,
    }
    assert contents(tmp_path) == {name: content for name, (content, _) in before.items()}


def test_one_format_more_touches_only_its_files_and_the_selector(tmp_path: Path) -> None:
    generate("--out", tmp_path, "--formats", "gptq-int4")
    before = state(tmp_path)
    generate("--out", tmp_path, "--formats", "gptq-int4,nvfp4")
    after = state(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"kernel_selector.h", MANIFEST}
    assert {name.split("_")[3] for name in after.keys() - before.keys()} == {"fe2m1f"}


def test_another_release_replaces_what_the_first_wrote(tmp_path: Path) -> None:
    generate("--out", tmp_path / "a", target="vllm-0.16", archs="7.5,8.9")
    generate("--out", tmp_path / "a")
    generate("--out", tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_check_tells_what_would_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--out", tmp_path / "out", "--check") == 1
    assert not (tmp_path / "out").exists()
    generate("--out", tmp_path / "out")
    before = state(tmp_path / "out")
    assert generate("--out", tmp_path / "out", "--check") == 0
    (tmp_path / "out" / "sm80_kernel_s8_u4_float16.cu").unlink()
    capsys.readouterr()
    assert generate("--out", tmp_path / "out", "--check", archs="7.5") == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"would change {tmp_path / 'out' / 'kernel_selector.h'}" in lines
    assert f"would add {tmp_path / 'out' / 'sm75_kernel_s8_u4_float16.cu'}" in lines
    assert f"would remove {tmp_path / 'out' / 'sm80_kernel_s8_u4b8_float16.cu'}" in lines
    assert len(lines) == 1 + 7 + 13
    assert state(tmp_path / "out") == {
        name: value for name, value in before.items() if name != "sm80_kernel_s8_u4_float16.cu"
    }


def test_list_names_the_files_without_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--out", tmp_path / "out", "--list", archs="7.5,8.9") == 0
    listed = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    assert listed[0] == str(tmp_path / "out" / "kernel_selector.h")
    generate("--out", tmp_path / "out", archs="7.5,8.9")
    written = {str(path) for path in (tmp_path / "out").iterdir() if path.name != MANIFEST}
    assert set(listed) == written


def test_depfile_names_root_and_inputs(tmp_path: Path) -> None:
    folder, rule = tmp_path / "o u#t$", tmp_path / "rule.d"
    generate("--out", folder, "--depfile", rule)
    target, inputs = rule.read_text().split(": ", 1)
    assert target == str(tmp_path) + "/o\\ u\\#t$$/kernel_selector.h"
    paths = [Path(word) for word in inputs.replace("\\\n", " ").split()]
    assert len(paths) > 10
    assert all(path.is_file() for path in paths)
    assert ROOT / "src/billhook/catalog/vllm/0.33.toml" in paths
    assert len(json.loads((folder / MANIFEST).read_text())["inputs"]) == len(paths)


def test_inputs_hold_all_code_that_renders(tmp_path: Path) -> None:
    """Whatever module runs while rendering is an input, or decides nothing about the text."""
    program = (
        "import sys; from billhook.cli import main; main(sys.argv[1:]); "
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('billhook')), file=sys.stderr)"
    )
    words = ["generate", "--target", "vllm-0.33", "--family", "marlin", "--arch", "8.0", "--out", tmp_path]
    done = run_python("-c", program, *words)
    loaded = {Path(name).relative_to(ROOT / "src").as_posix() for name in done.stderr.split()}
    inputs = set(json.loads((tmp_path / MANIFEST).read_text())["inputs"])
    idle = {
        *(f"billhook/{name}.py" for name in ("__init__", "errors", "config", "dtypes", "weights")),
        *(f"billhook/{package}/__init__.py" for package in ("cli", "emit", "vllm")),
        *(f"billhook/emit/{name}.py" for name in ("native", "source", "writer")),
        *(
            f"billhook/families/{name}.py"
            for name in ("__init__", "base", "machete", "machete_work", "marlin")
        ),
        *(f"billhook/vllm/{name}.py" for name in ("documented", "generate", "targets")),
        "billhook/cli/generate.py",
        "billhook/cli/vllm_options.py",
    }
    assert loaded - inputs <= idle


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "vllm-0.20"], "either --out DIR with one --family, or --tree PATH"),
        (["--target", "vllm-0.20", "--out", "x", "--tree", "y"], "either --out DIR with one --family"),
        (["--target", "vllm", "--out", "x", "--family", "marlin"], "--target vllm needs --tree"),
        (["--target", "vllm-0.20", "--out", "x"], "--out is the folder of one --family"),
        (["--target", "vllm-0.20", "--out", "x", "--family", "marlin"], "family marlin needs --arch"),
        (
            ["--target", "vllm-0.20", "--out", "x", "--family", "cutlass"],
            "known families: marlin-moe, marlin, machete",
        ),
        (["--target", "vllm-0.17", "--out", "x"], "'vllm-0.17' is not one of"),
    ],
)
def test_wrong_options_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0.16", "0.20", "0.33"])
def test_tree_gets_every_family_where_its_build_looks(number: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", number)
    assert main(["generate", "--target", "vllm", "--tree", str(root), "--arch", "7.5,8.9"]) == 0
    csrc = root / ("csrc/libtorch_stable" if number == "0.33" else "csrc")
    for family in ("quantization/marlin", "moe/marlin_moe_wna16"):
        assert len(list((csrc / family).glob("sm*_kernel_*.cu"))) == 26
        assert (csrc / family / "kernel_selector.h").exists()
    assert len(list((csrc / "quantization/machete/generated").glob("*.cu"))) == 10


def test_tree_of_another_release_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    assert main(["generate", "--target", "vllm-0.16", "--tree", str(root), "--arch", "8.0"]) == 2
    assert "is a tree of vLLM 0.20, not of 0.16" in capsys.readouterr().err


def test_folder_of_another_family_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate("--out", tmp_path)
    before = state(tmp_path)
    assert generate("--out", tmp_path, family="marlin") == 2
    assert "holds the generated files of family 'marlin-moe'" in capsys.readouterr().err
    assert state(tmp_path) == before


def test_kept_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sm75_kernel_float16_u4_float16.cu").write_text("mine")
    assert generate("--out", tmp_path) == 0
    assert "it has a generated file's name, but is not one" in capsys.readouterr().err
    assert (tmp_path / "sm75_kernel_float16_u4_float16.cu").read_text() == "mine"


@pytest.mark.parametrize("option", ["--models", "--heuristic"])
def test_missing_input_files_are_named(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = "machete" if option == "--heuristic" else "marlin"
    assert generate("--out", tmp_path / "out", option, tmp_path / "none", family=family) == 2
    assert f"cannot read {tmp_path / 'none'}: No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("none/rule.d", 1, "cannot write"), ("file/rule.d", 1, "cannot write"), ("", 2, "it is a folder")],
)
def test_depfile_that_cannot_be_written_leaves_everything_as_it_was(
    name: str, code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert generate("--out", tmp_path / "out", "--depfile", tmp_path / name) == code
    assert words in capsys.readouterr().err
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_failing_run_writes_no_depfile(tmp_path: Path) -> None:
    out, rule = tmp_path / "out", tmp_path / "rule.d"
    rule.write_text("as before")
    out.mkdir()
    (out / "kernel_selector.h").write_text("mine")
    assert generate("--out", out, "--depfile", rule) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out", "rule.d"}
    assert rule.read_text() == "as before"


@pytest.mark.parametrize(
    "words",
    [
        ["--arch", "8.0", "--heuristic", "{bad}"],
        ["--arch", "8.0,abc"],
        ["--arch", "8.0", "--formats", "int5"],
        ["--arch", "8.0", "--depfile", "rule.d"],
    ],
)
def test_what_is_wrong_for_one_family_leaves_all_of_a_tree_as_it_was(
    words: list[str], tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "vllm", "0.33")
    before = sorted(root.rglob("*"))
    bad = tmp_path / "bad.toml"
    bad.write_text('[[rule]]\nuse = "64x64_1x1x1"\n')
    arguments = [word.format(bad=bad) for word in words]
    assert main(["generate", "--target", "vllm", "--tree", str(root), *arguments]) == 2
    assert sorted(root.rglob("*")) == before


def test_a_folder_in_the_way_of_one_family_leaves_all_of_a_tree_as_it_was(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", "0.33")
    (root / "csrc/libtorch_stable/quantization/machete/generated").write_text("mine")
    before = sorted(root.rglob("*"))
    assert main(["generate", "--target", "vllm", "--tree", str(root), "--arch", "8.0"]) == 2
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("machete", ["--arch", "abc"], "'abc' is not a GPU architecture"),
        ("machete", ["--selector", "switch"], "--selector is for --family marlin and marlin-moe"),
        ("marlin", ["--arch", "8.0", "--qqq"], "--qqq is for --family machete"),
        ("marlin", ["--arch", "8.0", "--heuristic", "rules.toml"], "--heuristic is for --family machete"),
        ("marlin", ["--arch", "8.0", "--group-size", "64,x"], "--group-size x is no whole number"),
        ("marlin", ["--arch", "8.0", "--check", "--depfile", "rule.d"], "--depfile is for a run that writes"),
        ("marlin", ["--arch", "8.0", "--out", ""], "Invalid value for '--out': it is empty"),
        ("marlin", ["--arch", "8.0", "missing.json"], "cannot read missing.json"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    family: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["generate", "--target", "vllm-0.33", "--family", family, "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_several_values_of_an_option(tmp_path: Path) -> None:
    generate("--out", tmp_path / "a", "--group-size", "32,64", "--formats", "awq-int4 gptq-int4")
    generate(
        *("--out", tmp_path / "b", "--group-size", 32, "--group-size", 64),
        *("--formats", "awq-int4", "--formats", "gptq-int4"),
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("target", ["10.1", "10.1+PTX", "7.0,8.0", "11.0"])
def test_targets_that_only_releases_know_can_be_narrowed_for(target: str, tmp_path: Path) -> None:
    model = ROOT / "examples/models/llama-3.1-8b-gptq-int4/config.json"
    assert generate("--out", tmp_path, "--models", model, family="marlin", archs=target) == 0
    assert len(list(tmp_path.glob("*.cu"))) == 1
