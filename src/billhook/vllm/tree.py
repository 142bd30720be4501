"""A vLLM source tree on disk: which release it is, and whose generator scripts it runs.

`install` puts launchers in the place of the tree's generator scripts; they take the same command
line, so the tree's build needs no change. Beside each it keeps the script it replaced, which
`remove` renames back: bytes, mode and times are the tree's own again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..emit.writer import read
from ..errors import InputError, StorageError
from .job import EVERYTHING, Narrowing
from .release import Release, Sign, load_release, releases

KEPT = ".billhook-orig"  # what a replaced script's name ends with
_ASIDE = ".billhook-new"
_VERSION_FILES = {
    "vllm/_version.py": r"^(?:__version__\s*=\s*)?(?:version\s*=\s*)['\"](\d+)\.(\d+)",
    "PKG-INFO": r"^Version:\s*(\d+)\.(\d+)",
}
_LAUNCHER = '''\
"""Runs Billhook in place of this tree's own generator, kept in {kept}.

`billhook vllm remove --tree ...` puts the original back.
"""

import sys
from pathlib import Path

try:
    from billhook.vllm.launcher import run_script
except ImportError:
    sys.exit(
        f"{{__file__}}: Billhook is not installed for {{sys.executable}}; install it there, "
        "or put the tree's own generator back with `billhook vllm remove`"
    )

if __name__ == "__main__":
    sys.exit(run_script("{release}", "{family}", sys.argv[1:], Path(__file__){narrowing}))
'''


@dataclass(frozen=True)
class Script:
    """One generator script of a tree.

    Args:
        path: Where the tree's build looks for it.
        family: The first family it writes.
    """

    path: Path
    family: str

    @property
    def kept(self) -> Path:
        """Where the tree's own script is while ours is in its place."""
        return self.path.with_name(self.path.name + KEPT)


@dataclass(frozen=True)
class Tree:
    """A recognised source tree.

    Args:
        root: Its topmost folder.
        release: Its release.
    """

    root: Path
    release: Release

    def folder(self, family: str) -> Path:
        """Return the folder where the build looks for a family's generated files."""
        if family == "machete":
            return self._place(self.release.machete.folder) / "generated"
        return self._place(self.release.marlin.folders[family])

    @property
    def scripts(self) -> list[Script]:
        """The generator scripts, each once."""
        named = {**self.release.marlin.scripts, "machete": self.release.machete.script}
        found: dict[Path, str] = {}
        for family, script in named.items():
            found.setdefault(self._place(script), family)
        return [Script(path, family) for path, family in found.items()]

    def launcher(self, script: Script, narrowing: Narrowing = EVERYTHING) -> bytes:
        """Return what takes a script's place, and generates for the requests of `narrowing`."""
        said = {key: value for key, value in vars(narrowing).items() if value != getattr(EVERYTHING, key)}
        if narrowing.models:  # the build runs in a folder of its own
            said["models"] = tuple(str(path.resolve()) for path in narrowing.models)
        text = _LAUNCHER.format(
            kept=script.kept.name,
            release=self.release.release,
            family=script.family,
            narrowing=f", {said!r}" if said else "",
        )
        return text.encode()

    def state(self, script: Script) -> str:
        """Return whose script the build runs: "original", "billhook", or "unknown" if neither's."""
        content = read(script.path)
        if not script.kept.exists():
            return "original" if content is not None and not _is_launcher(content) else "unknown"
        if content is not None and _is_launcher(content):
            return "billhook"
        return "original" if content == read(script.kept) else "unknown"

    def _place(self, name: str) -> Path:
        return _find(self.root, self.release, name) or self.root / self.release.roots[-1] / name


def recognise(root: Path) -> Tree:
    """Tell which release a source tree is of, by its own files.

    Args:
        root: The tree's topmost folder; ours may be installed in it.

    Raises:
        InputError: Not a folder, or not a tree of a known release; the message says what speaks against each.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the topmost folder of a vLLM source tree")
    stated = _stated_release(root)
    if stated is not None and stated not in releases():
        raise InputError(
            f"{root} is a tree of vLLM {stated}, which is not known; known: {', '.join(releases())}"
        )
    objections = []
    for number in [stated] if stated else releases():
        release = load_release(number)
        objection = next(filter(None, (_objection(root, release, sign) for sign in release.signs)), None)
        if objection is None:
            return Tree(root, release)
        objections.append(f"not {number}: {objection}")
    raise InputError(f"{root} is no source tree of a known vLLM release ({'; '.join(objections)})")


def install(tree: Tree, narrowing: Narrowing = EVERYTHING) -> list[Path]:
    """Put launchers in the place of the tree's generator scripts, keeping those beside them.

    Args:
        tree: Where.
        narrowing: What the tree's build has to serve from now on.

    Returns:
        The scripts that were replaced; none if all were such launchers already.

    Raises:
        InputError: A script is neither the tree's own nor ours, or a model or name of the narrowing is wrong;
            nothing has changed then.
        StorageError: A file cannot be written; nothing has changed then.
    """
    if narrowing:
        from .narrow import check, requests

        check(narrowing, tree.release)
        requests(narrowing)
    fresh = [script for script in tree.scripts if _known_state(tree, script) == "original"]
    renewed = [
        script
        for script in tree.scripts
        if script not in fresh and read(script.path) != tree.launcher(script, narrowing)
    ]
    with _undone_on_failure() as undo:
        for script in [*fresh, *renewed]:
            aside = script.path.with_name(script.path.name + _ASIDE)
            undo.append((None, aside))
            aside.write_bytes(tree.launcher(script, narrowing))
            shutil.copymode(script.path, aside)
            if script in fresh:
                _keep(script)
                undo.append((script.kept, script.path))
            aside.replace(script.path)
    return [script.path for script in [*fresh, *renewed]]


def remove(tree: Tree) -> list[Path]:
    """Put the tree's own generator scripts back.

    Returns:
        The scripts that were put back; none if ours were not installed.

    Raises:
        InputError: A script is neither the tree's own nor ours; nothing has changed then.
        StorageError: A file cannot be renamed; those that were not are still ours, and a second run goes on.
    """
    installed = [script for script in tree.scripts if _known_state(tree, script) == "billhook"]
    try:
        for script in tree.scripts:
            if script.kept.exists():
                _put_back(script.kept, script.path)
            for name in (script.path.name, script.kept.name):  # what a killed run may have left
                script.path.with_name(name + _ASIDE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot put back {error.filename}: {error.strerror}; run it again") from error
    return [script.path for script in installed]


def _known_state(tree: Tree, script: Script) -> str:
    state = tree.state(script)
    if state != "unknown":
        return state
    if script.kept.exists():
        raise InputError(
            f"{script.path} was changed after Billhook was installed; if that is the script to use, "
            f"delete {script.kept}, else rename that over it"
        )
    raise InputError(f"{script.path} is Billhook's, but {script.kept} is missing; check it out of git again")


@contextmanager
def _undone_on_failure() -> Iterator[list[tuple[Path | None, Path]]]:
    """Collect (kept, path): on failure `kept` is renamed to `path`; without one, `path` is deleted."""
    undo: list[tuple[Path | None, Path]] = []
    try:
        yield undo
    except BaseException as error:
        for kept, path in reversed(undo):
            if kept is None:
                path.unlink(missing_ok=True)
            elif kept.exists():
                _put_back(kept, path)
        if isinstance(error, OSError):
            raise StorageError(
                f"cannot write {error.filename}: {error.strerror}; nothing was changed"
            ) from error
        raise


def _keep(script: Script) -> None:
    """Give the tree's script a second name (a copy where the file system has no links); the first stays."""
    script.kept.unlink(missing_ok=True)
    try:
        os.link(script.path, script.kept)
    except OSError:
        part = script.kept.with_name(script.kept.name + _ASIDE)
        shutil.copy2(script.path, part)
        part.replace(script.kept)


def _put_back(kept: Path, path: Path) -> None:
    kept.replace(path)
    kept.unlink(missing_ok=True)  # renaming one of two names of the same file does nothing


def _is_launcher(content: bytes) -> bool:
    return b"from billhook.vllm.launcher import run_script" in content


def _stated_release(root: Path) -> str | None:
    """Return the release that the tree's version files state, as `MAJOR.MINOR`; None if there are none."""
    for name, pattern in _VERSION_FILES.items():
        content = read(root / name)
        found = re.search(pattern, content.decode(errors="replace"), re.MULTILINE) if content else None
        if found:
            return f"{found[1]}.{found[2]}"
    return None


def _objection(root: Path, release: Release, sign: Sign) -> str | None:
    """Return what speaks against the release, in words; None if the sign is there."""
    path = _find(root, release, sign.file)
    if (path is not None) != sign.exists:
        return f"there is {'no' if sign.exists else 'a'} {sign.file}"
    if path is None:
        return None
    kept = path.with_name(path.name + KEPT)
    text = (read(kept if kept.exists() else path) or b"").decode(errors="replace")
    for pattern in sign.holds:
        if not re.search(pattern, text):
            return f"{path.relative_to(root)} lacks {pattern}"
    for pattern in sign.lacks:
        if re.search(pattern, text):
            return f"{path.relative_to(root)} holds {pattern}"
    return None


def _find(root: Path, release: Release, name: str) -> Path | None:
    paths = (root / one / name for one in release.roots)
    return next((path for path in paths if path.exists()), None)
