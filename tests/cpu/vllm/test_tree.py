"""Trees are recognised by their own files; installing is undone to the byte, and never leaves a half."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpu.vllm.trees import SCRIPTS, write_tree

from billhook.cli import main
from billhook.errors import InputError, StorageError
from billhook.vllm import tree as trees
from billhook.vllm.tree import install, recognise, remove

RELEASES = ["0.16", "0.20", "0.33"]
SRC = Path(trees.__file__).parents[2]
ROOT = SRC.parent


def snapshot(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of every file."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run(script: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("release", RELEASES)
def test_recognises_each_release_installed_or_not(release: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", release)
    assert recognise(root).release.release == release
    install(recognise(root))
    assert recognise(root).release.release == release


def test_recognises_a_release_whose_kernels_moved_back(tmp_path: Path) -> None:
    tree = recognise(write_tree(tmp_path / "vllm", "0.33", csrc="csrc"))
    assert tree.release.release == "0.33"
    assert tree.folder("marlin-moe") == tmp_path / "vllm/csrc/moe/marlin_moe_wna16"
    assert tree.folder("machete") == tmp_path / "vllm/csrc/quantization/machete/generated"


def test_a_stated_version_must_agree(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    (root / "vllm").mkdir()
    version = root / "vllm" / "_version.py"
    version.write_text("__version__ = version = '0.20.2.dev3+gabc'\n")
    assert recognise(root).release.release == "0.20"
    version.write_text("version = '0.16.0'\n")
    with pytest.raises(InputError, match=r"not 0\.16: .*marlin_moe_wna16/generate_kernels\.py holds"):
        recognise(root)
    version.write_text("__version__ = version = '0.21.0'\n")
    with pytest.raises(
        InputError, match=r"is a tree of vLLM 0\.21, which is not known; known: 0\.16, 0\.20, 0\.33"
    ):
        recognise(root)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        recognise(tmp_path / "missing")
    with pytest.raises(
        InputError, match=r"no source tree of a known vLLM release \(not 0\.16: there is no moe"
    ):
        recognise(tmp_path)
    root = write_tree(tmp_path / "vllm", "0.20")
    script = root / "csrc/quantization/marlin/generate_kernels.py"
    script.write_text(script.read_text().replace("TORCH_CHECK", "STD_TORCH_CHECK"))
    before = snapshot(root)
    for command in ("install", "remove", "status"):
        assert main(["vllm", command, "--tree", str(root)]) == 2
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("release", "old", "new"),
    [
        ("0.16", '"a_type": ["kS8"],', ""),  # before int8 activations
        ("0.16", "arch in [89, 120]", "arch == 89 or arch // 10 == 12"),  # between two releases
        ("0.20", "arch in [89, 120]", "arch == 89 or arch // 10 == 12"),
        ("0.33", "arch == 89 or arch // 10 == 12", "arch in [89, 120]"),
    ],
)
def test_trees_before_and_between_releases_are_refused(
    release: str, old: str, new: str, tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "vllm", release)
    for script in root.rglob("generate_kernels.py"):
        assert old in script.read_text()
        script.write_text(script.read_text().replace(old, new))
    with pytest.raises(InputError, match=f"not {re.escape(release)}: .* (lacks|holds) "):
        recognise(root)


@pytest.mark.parametrize("release", RELEASES)
def test_install_and_remove_leave_the_tree_as_it_was(release: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", release)
    before = snapshot(root)
    tree = recognise(root)
    changed = install(tree)
    assert {str(path).split("csrc/", 1)[1].removeprefix("libtorch_stable/") for path in changed} == SCRIPTS[
        release
    ]
    during = snapshot(root)
    for script in tree.scripts:
        name = str(script.path.relative_to(root))
        assert during[name + ".billhook-orig"] == before[name]
        assert during[name][0] != before[name][0]
        assert during[name][1] == before[name][1]
    assert set(during) == set(before) | {str(one.kept.relative_to(root)) for one in tree.scripts}
    assert install(recognise(root)) == []
    assert snapshot(root) == during
    assert set(remove(recognise(root))) == set(changed)
    assert snapshot(root) == before
    assert remove(recognise(root)) == []
    assert snapshot(root) == before


@pytest.mark.parametrize("release", RELEASES)
def test_the_launchers_take_the_same_command_lines(release: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", release)
    tree = recognise(root)
    install(tree)
    for script in tree.scripts:
        arguments = [] if script.family == "machete" else ["8.0,9.0a"]
        if release == "0.33" and script.family != "machete":
            for family in ("marlin", "marlin-moe"):
                done = run(script.path, *arguments, str(tree.folder(family)), cwd=tmp_path)
                assert done.returncode == 0, done.stderr
        else:
            done = run(script.path, *arguments, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    assert not list(root.rglob("original-ran"))
    for family, first in (
        ("marlin", "kernel_selector.h"),
        ("marlin-moe", "kernel_selector.h"),
        ("machete", "machete_mm_dispatch.cu"),
    ):
        assert (tree.folder(family) / first).exists()
        check = ["generate", "--target", "vllm", "--tree", str(root), "--arch", "8.0,9.0a", "--check"]
        assert main([*check, "--family", family]) == 0
    remove(tree)
    script = tree.folder("marlin") / "generate_kernels.py"
    assert run(script, "8.0").returncode == 0
    assert (tree.folder("marlin") / "original-ran").read_text() == "8.0"


def test_a_launcher_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    tree = recognise(write_tree(tmp_path / "vllm", "0.16"))
    install(tree)
    bare = subprocess.run(
        [sys.executable, "-I", "-S", str(tree.scripts[0].path), "8.0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bare.returncode == 1
    assert "Billhook is not installed for" in bare.stderr
    assert "billhook vllm remove" in bare.stderr


def test_a_script_that_changed_after_install_is_left_alone(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    tree = recognise(root)
    install(tree)
    script = tree.scripts[0]
    script.path.write_text("# somebody's own\n")
    before = snapshot(root)
    for act in (install, remove):
        with pytest.raises(InputError, match="was changed after Billhook was installed"):
            act(tree)
    assert snapshot(root) == before
    assert tree.state(script) == "unknown"


def test_a_lost_original_is_named(tmp_path: Path) -> None:
    tree = recognise(write_tree(tmp_path / "vllm", "0.20"))
    install(tree)
    tree.scripts[0].kept.unlink()
    with pytest.raises(InputError, match="is missing; check it out of git again"):
        remove(tree)


def test_a_launcher_of_another_version_is_renewed(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    before = snapshot(root)
    tree = recognise(root)
    install(tree)
    script = tree.scripts[0].path
    script.write_text("from billhook.vllm.launcher import run_script  # as it was once\n")
    assert install(tree) == [script]
    assert script.read_bytes() == tree.launcher(tree.scripts[0])
    remove(tree)
    assert snapshot(root) == before


class Killed(BaseException):
    """Stands for a run that ends at once, without cleaning up."""


@pytest.mark.parametrize("release", RELEASES)
def test_a_killed_install_leaves_scripts_that_work_and_a_second_goes_on(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before the first, second, ... change of the tree; no clean-up runs."""
    for stop in range(1, 30):
        root = write_tree(tmp_path / f"vllm{stop}", release)
        before = snapshot(root)
        tree = recognise(root)
        pid = os.fork()
        if pid == 0:
            _stop_at_change(stop, monkeypatch)
            try:
                install(tree)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        killed_midway = {script.path.read_bytes() for script in tree.scripts}
        launchers = {tree.launcher(script) for script in tree.scripts}
        originals = {before[str(script.path.relative_to(root))][0] for script in tree.scripts}
        assert killed_midway <= launchers | originals
        finished = all(tree.state(script) == "billhook" for script in tree.scripts)
        install(recognise(root))
        assert all(tree.state(script) == "billhook" for script in tree.scripts)
        remove(recognise(root))
        assert snapshot(root) == before
        if finished:
            assert stop > len(tree.scripts)
            return
    pytest.fail("install never finished")


def _stop_at_change(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process, as a kill would, before the change number `stop`."""
    changes = 0

    def counted(real):  # type: ignore[no-untyped-def]
        def act(*arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal changes
            changes += 1
            if changes == stop:
                os._exit(9)
            return real(*arguments, **options)

        return act

    for owner, name in ((Path, "write_bytes"), (Path, "replace"), (os, "link"), (trees.shutil, "copymode")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


def test_a_failing_install_takes_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    before = snapshot(root)
    tree = recognise(root)
    real, calls = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StorageError, match="No space left on device; nothing was changed"):
        install(tree)
    monkeypatch.undo()
    assert snapshot(root) == before


def test_file_systems_without_links_get_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")
    before = snapshot(root)

    def link(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    tree = recognise(root)
    install(tree)
    remove(tree)
    assert snapshot(root) == before


def test_the_commands_report_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "vllm", "0.20")

    def ask(command: str) -> list[str]:
        assert main(["vllm", command, "--tree", str(root)]) == 0
        return capsys.readouterr().out.splitlines()

    marlin = "csrc/quantization/marlin/generate_kernels.py"
    assert ask("status")[:2] == [f"{root}: vLLM 0.20", f"  {marlin}: original"]
    assert f"installed: {marlin}" in ask("install")
    assert ask("install") == [f"already installed: {root} (vLLM 0.20) is as it was"]
    assert f"  {marlin}: billhook" in ask("status")
    assert f"put back: {marlin}" in ask("remove")
    assert ask("remove") == [f"not installed: {root} (vLLM 0.20) is as it was"]


def test_a_narrowed_installation_builds_only_what_is_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path / "vllm", "0.33")
    before = snapshot(root)
    model = tmp_path / "it's a model.json"
    shutil.copy(ROOT / "examples/models/llama-3.1-8b-gptq-int4/config.json", model)
    words = ["vllm", "install", "--tree", str(root), str(model), "--max-tokens", "64"]
    assert main([*words, "--formats", "int5"]) == 2
    assert main([*words, str(tmp_path / "none.json")]) == 2
    assert snapshot(root) == before
    assert main(words) == 0
    tree = recognise(root)
    for script in tree.scripts:
        folder = tree.folder(script.family)
        arguments = [] if script.family == "machete" else ["8.0", str(folder)]
        done = run(script.path, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        check = ["generate", "--target", "vllm", "--tree", str(root), "--family", script.family]
        assert main([*check, *words[4:], "--arch", "8.0", "--check"]) == 0
    assert len(list(tree.folder("marlin").glob("*.cu"))) == 1
    capsys.readouterr()
    assert main(words) == 0
    assert "already installed" in capsys.readouterr().out
    assert main(words[:4]) == 0
    assert capsys.readouterr().out.count("installed: ") == 2
    assert install(recognise(root)) == []
