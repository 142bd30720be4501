"""Write generated files into a folder that also holds files of others.

A file is written only if its text differs. Everything is staged aside and then
renamed. One file, the root, refers to all the others (a selector, a dispatch table).
Where more than one file changes, the root is first replaced by one that does not
compile, and the real one comes last: at every moment the folder holds the old files,
the new files, or a root whose `#error` says to run again. A run that fails, without
being killed, puts back what it had replaced.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, StorageError
from .manifest import GENERATED, MANIFEST, STAGING, Manifest, digest, read_manifest
from .source import SourceFile

Move = tuple[Path | None, Path]  # (source, target); without a source the target is removed

GUARD = (
    f"// {GENERATED}.\n"
    '#error "Billhook was interrupted while it replaced the files of this folder; run the generator again."\n'
)


@dataclass(frozen=True)
class Originals:
    """Files that another generator may have left behind and that ours replace.

    Args:
        names: Every name it can write.
        marker: Text that its files hold; a file of such a name without it belongs to someone else.
    """

    names: frozenset[str] = frozenset()
    marker: str = ""


@dataclass(frozen=True)
class Changes:
    """What a run does, or would do, to a folder; file names in the order of generation.

    Args:
        added: New files.
        changed: Files whose text differs.
        removed: Generated files that are no longer wanted.
        unchanged: Files left alone, times included.
        kept: Files with a name that is no longer wanted but whose content is not generated.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def compare(folder: Path, files: Sequence[SourceFile], originals: Originals) -> Changes:
    """Tell what writing `files` into `folder` would change.

    Args:
        folder: It need not exist.
        files: All generated files of the folder, the root first.
        originals: Files of another generator that ours replace.

    Raises:
        InputError: The folder is a file.
        StorageError: A file cannot be read, or one that is not generated has the name of one that would be.
    """
    _refuse_file(folder)
    found: dict[str, list[str]] = {"added": [], "changed": [], "removed": [], "unchanged": [], "kept": []}
    for file in files:
        present = read(folder / file.path)
        if present is None:
            found["added"].append(file.path)
        elif present == file.text.encode():
            found["unchanged"].append(file.path)
        elif _is_generated(file.path, present, originals):
            found["changed"].append(file.path)
        else:
            raise StorageError(
                f"{folder / file.path} exists and is not generated; move it away, or choose another folder"
            )
    manifest = read_manifest(folder)
    wanted = {file.path for file in files}
    # The root first, as the manifest has it: without it the others are never referred to.
    for name in dict.fromkeys([*(manifest.files if manifest else ()), *sorted(originals.names)]):
        present = None if name in wanted else read(folder / name)
        if present is not None:
            found["removed" if _is_generated(name, present, originals) else "kept"].append(name)
    return Changes(**{kind: tuple(names) for kind, names in found.items()})


def write(
    folder: Path,
    files: Sequence[SourceFile],
    request: dict[str, object],
    inputs: dict[str, str],
    originals: Originals = Originals(),
) -> Changes:
    """Make a folder hold exactly these generated files, beside those that are not ours.

    Args:
        folder: Created if it does not exist.
        files: All generated files of the folder, the root first.
        request: What was asked for, in JSON types; kept in the manifest.
        inputs: Name -> SHA-256 of what decided the files' content; kept in the manifest.
        originals: Files of another generator that ours replace.

    Raises:
        InputError: The folder is a file or may not be written.
        StorageError: A file cannot be read or written; nothing has changed then.
    """
    new = Manifest(request, inputs, {file.path: digest(file.text.encode()) for file in files})
    with _locked(folder):
        changes = compare(folder, files, originals)
        old = read_manifest(folder)
        if not changes and old == new:
            return changes
        intent = Manifest(request, inputs, {**(old.files if old else {}), **new.files})
        with _staging(folder) as aside:
            moves = _stage(folder, aside, files, changes)
            begin, end = aside / "begin", aside / "end"
            begin.write_bytes(intent.encode())
            end.write_bytes(new.encode())
            _commit([(begin, folder / MANIFEST), *moves, (end, folder / MANIFEST)], aside)
    return changes


def remove(folder: Path, originals: Originals = Originals()) -> Changes:
    """Remove the generated files of a folder, and its manifest.

    Args:
        folder: A folder that `write` filled, or one that another generator filled.
        originals: Files of another generator that count as generated.

    Raises:
        StorageError: A file cannot be read or removed; nothing has changed then.
    """
    if not folder.is_dir():
        return Changes()
    with _locked(folder):
        changes = compare(folder, [], originals)
        gone = [*changes.removed, *([MANIFEST] if (folder / MANIFEST).exists() else [])]
        if gone:
            with _staging(folder) as aside:
                _commit([(None, folder / name) for name in gone], aside)
    return changes


def _stage(folder: Path, aside: Path, files: Sequence[SourceFile], changes: Changes) -> list[Move]:
    """Write into `aside` what is new; return the renames in an order that never leaves a wrong mixture."""
    root = files[0].path
    touched = {*changes.added, *changes.changed}
    staged: dict[str, Path] = {}
    for number, file in enumerate(files):
        if file.path in touched:
            staged[file.path] = aside / f"new-{number}"
            staged[file.path].write_bytes(file.text.encode())
    moves: list[Move] = [(source, folder / name) for name, source in staged.items() if name != root]
    moves += [(None, folder / name) for name in changes.removed]
    last: list[Move] = [(staged[root], folder / root)] if root in staged else []
    if root in changes.added or len(moves) + len(last) < 2:
        return moves + last
    guard = aside / "guard"
    guard.write_text(GUARD)
    if not last:  # it comes back as it was, times included
        last = [(Path(shutil.copy2(folder / root, aside / "root")), folder / root)]
    return [(guard, folder / root), *moves, *last]


def _commit(moves: Sequence[Move], aside: Path) -> None:
    """Rename each source onto its target, or remove the target; on failure put everything back."""
    done: list[tuple[Path, Path]] = []
    try:
        for number, (source, target) in enumerate(moves):
            saved = aside / f"old-{number}"
            if target.exists():
                shutil.copy2(target, saved)
            done.append((saved, target))
            target.parent.mkdir(parents=True, exist_ok=True)
            if source is None:
                target.unlink()
            else:
                source.replace(target)
    except BaseException:
        for saved, target in reversed(done):
            if saved.exists():
                saved.replace(target)
            else:
                target.unlink(missing_ok=True)
        raise


def read(path: Path) -> bytes | None:
    """Read a file; None if there is none.

    Raises:
        StorageError: There is one, but it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _is_generated(name: str, content: bytes, originals: Originals) -> bool:
    if GENERATED.encode() in content.split(b"\n", 1)[0]:
        return True
    return name in originals.names and originals.marker.encode() in content


def require_writable(folder: Path) -> None:
    """Refuse an output folder that could not be created or written.

    Raises:
        InputError: It is a file or in one, or it, or the folder it would be created in, may not be written.
    """
    nearest = _refuse_file(folder)
    if not os.access(nearest, os.W_OK | os.X_OK):
        inside = "" if nearest == folder else f": {nearest} may not be written"
        raise InputError(
            f"the output folder {folder} may not be {'created' if inside else 'written'}{inside}"
        )


def _refuse_file(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists; raise if that is a file."""
    nearest = next(one for one in (folder, *folder.parents) if one.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write into the output folder {folder}: {nearest} is a file")
    return nearest


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one run at a time work on a folder; the lock is on the folder itself and ends with the process."""
    require_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create the output folder {folder}: {error.strerror}") from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        for left in folder.glob(f"{STAGING}*"):  # of a killed run
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise StorageError(f"cannot lock the output folder {folder}: {error.strerror}") from error


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give a folder on the same file system, gone afterwards."""
    aside = None
    try:
        aside = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        yield aside
    except OSError as error:
        raise StorageError(
            f"cannot write into {folder}: {error.strerror}; its files are as they were"
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
