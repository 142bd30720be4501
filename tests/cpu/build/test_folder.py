from __future__ import annotations

from pathlib import Path

import pytest

from billhook.build import folder as folders
from billhook.build.folder import fill_folder

OLD = {"a": b"1", "deep/er/b": b"2"}
NEW = {"a": b"3", "c": b"4"}


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(params=["exchange", "no exchange"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "no exchange":
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    return tmp_path / "parent/target"


def test_a_folder_is_made_and_replaced(target: Path) -> None:
    fill_folder(target, OLD)
    assert read(target) == OLD
    fill_folder(target, NEW)
    assert read(target) == NEW
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_is_filled(target: Path) -> None:
    target.mkdir(parents=True)
    fill_folder(target, NEW)
    assert read(target) == NEW


def test_a_full_disk_leaves_the_old_folder(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_folder(target, OLD)
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        if path.name == "c":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left"):
        fill_folder(target, NEW)
    assert read(target) == OLD
    assert list(target.parent.iterdir()) == [target]


def test_a_rename_that_fails_puts_the_old_folder_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_folder(target, OLD)
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    rename = Path.rename
    calls = []

    def fail_second(path: Path, other: Path) -> Path:
        calls.append(other)
        if len(calls) == 3:  # after the attempt to rename directly, and the old folder's
            raise OSError(5, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="Input/output"):
        fill_folder(target, NEW)
    assert read(target) == OLD
    assert list(target.parent.iterdir()) == [target]
