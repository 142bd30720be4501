from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.build.cache import Cache, cache_folder, cache_key
from billhook.build.nvrtc import Compiled
from billhook.errors import StorageError

KEY = "ab" * 32
COMPILED = Compiled(cubin=bytes(range(256)), ptx="// ptx", log="Used 1 registers", seconds=0.5)
PARTS = {"text": "t", "headers": {"h": "x"}, "options": ("-a",), "compiler": "c", "ptx": False}


def key(**changed: object) -> str:
    return cache_key(**{**PARTS, **changed})  # type: ignore[arg-type]


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BILLHOOK_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / "home/.cache/billhook"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/billhook"
    monkeypatch.setenv("BILLHOOK_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "not/yet/there")
    assert cache.get(KEY) is None
    cache.put(KEY, COMPILED)
    assert cache.get(KEY) == COMPILED
    assert cache.measure() == (1, cache.path(KEY).stat().st_size)


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "u"},
        {"headers": {"h": "y"}},
        {"headers": {"g": "x"}},
        {"headers": {}},
        {"options": ("-b",)},
        {"compiler": "d"},
        {"ptx": True},
    ],
    ids=str,
)
def test_everything_that_enters_changes_the_key(changed: dict[str, object]) -> None:
    assert key(**changed) != key()


def test_the_order_of_headers_does_not_change_the_key() -> None:
    assert key(headers={"a": "1", "b": "2"}) == key(headers={"b": "2", "a": "1"})


@given(
    st.lists(st.text(max_size=4), min_size=2, max_size=2),
    st.lists(st.text(max_size=4), min_size=2, max_size=2),
)
def test_keys_do_not_run_texts_together(one: list[str], other: list[str]) -> None:
    same = key(text=one[0], compiler=one[1]) == key(text=other[0], compiler=other[1])
    assert same == (one == other)


@given(st.data())
def test_a_damaged_entry_is_as_good_as_absent(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    cache.put(KEY, COMPILED)
    content = bytearray(cache.path(KEY).read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    cache.path(KEY).write_bytes(content)
    assert cache.get(KEY) is None


def test_writers_of_one_entry_do_not_disturb_readers(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    large = Compiled(cubin=bytes(1 << 20), ptx="", log="", seconds=0.0)
    cache.put(KEY, large)
    stop = threading.Event()
    seen = []

    def read() -> None:
        while not stop.is_set():
            seen.append(cache.get(KEY) == large)

    def write() -> None:
        for _ in range(20):
            cache.put(KEY, large)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(2)]
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert seen
    assert all(seen)
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [KEY]


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file.*BILLHOOK_CACHE_DIR"):
        Cache(tmp_path / "file").put(KEY, COMPILED)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    cache.put(KEY, COMPILED)
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(StorageError, match="No space left"):
        cache.put(KEY, Compiled(cubin=b"other", ptx="", log="", seconds=0.0))
    monkeypatch.undo()
    assert cache.get(KEY) == COMPILED
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [KEY]
