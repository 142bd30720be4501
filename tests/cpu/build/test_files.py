"""What killed processes leave aside is removed by the next one; what is not theirs stays."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from billhook.build import files
from billhook.build.files import place_aside, write_aside
from billhook.build.folder import fill_folder

# The process is killed while it writes the first file.
KILLED = """
import os, pathlib, signal, sys
from billhook.build.files import write_aside
from billhook.build.folder import fill_folder

def die(path, content):
    path.touch()
    os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.write_bytes = die
target = pathlib.Path(sys.argv[2])
if sys.argv[1] == "folder":
    fill_folder(target, {"deep/a": b"1"})
else:
    write_aside(target, b"1")
"""


def write(kind: str, target: Path) -> None:
    if kind == "folder":
        fill_folder(target, {"deep/a": b"2"})
    else:
        write_aside(target, b"2")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_left_is_removed_by_the_next(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, kind, str(target)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(".target.") for path in tmp_path.iterdir()] == [True]
    write(kind, target)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_left_behind_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "node", lambda: "elsewhere")
        of_another_host = place_aside(target)
    mine = place_aside(target)
    others = [
        mine,
        of_another_host,
        tmp_path / ".target",
        tmp_path / f"{mine.name}.old",
        place_aside(tmp_path / "it"),
    ]
    for path in others:
        path.write_text("")
    with monkeypatch.context() as dead:
        dead.setattr(files, "_is_alive", lambda pid: pid == os.getpid())
        write(kind, target)
    assert set(tmp_path.iterdir()) == {target, *others}


def test_a_process_lives_until_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert files._is_alive(child.pid)
    child.wait()
    assert not files._is_alive(child.pid)
    assert not files._is_alive(10**30)
