"""Generate the families of a vLLM release into their folders, touching only what changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..emit.manifest import hash_inputs, is_current, read_manifest
from ..emit.source import SourceFile
from ..emit.writer import Changes, Originals, compare, require_writable, write
from ..errors import InputError
from .job import Job, family


@dataclass(frozen=True)
class Generation:
    """A job that was checked and rendered, and waits to be written.

    Args:
        job: What is generated.
        folder: Where its files go.
        request: What the job asks for, as the manifest keeps it.
        inputs: Name -> SHA-256 of what decided the files' content.
        files: What was rendered; empty if the folder holds it already.
        changes: What writing changes.
    """

    job: Job
    folder: Path
    request: dict[str, object]
    inputs: dict[str, str]
    files: Sequence[SourceFile]
    changes: Changes

    def write(self) -> Changes:
        """Make the folder hold the files, and return what changed.

        Raises:
            InputError: The folder has become a file or unwritable.
            StorageError: A file cannot be read or written; nothing has changed then.
        """
        if not self.files:
            return self.changes
        return write(self.folder, self.files, self.request, self.inputs, originals(self.job))


def prepare(job: Job, folder: Path, *, check: bool = False) -> Generation:
    """Check and render a job, writing nothing.

    If the folder's manifest says that request and inputs are the same, and the files'
    hashes agree, nothing is rendered.

    Args:
        job: What to generate.
        folder: Where its files go; it need not exist.
        check: Whether nothing will be written, so that the folder need not be writable.

    Raises:
        InputError: The folder is a file, may not be written, or holds another family's generated files; or a
            model config or rule file of the job cannot be read.
        StorageError: A file cannot be read, or one that is not generated is in the way.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.request.get("family") != job.family:
        raise InputError(
            f"{folder} holds the generated files of family {manifest.request.get('family')!r}; "
            f"choose another folder for {job.family!r}"
        )
    request, inputs = describe(job), hash_inputs(family(job.family).inputs(job))
    if manifest is not None and is_current(folder, request, inputs):
        return Generation(job, folder, request, inputs, (), Changes(unchanged=tuple(manifest.files)))
    files = family(job.family).render(job)
    changes = compare(folder, files, originals(job))
    if not check:
        require_writable(folder)
    return Generation(job, folder, request, inputs, files, changes)


def generate(job: Job, folder: Path) -> Changes:
    """Make a folder hold the generated files of a job.

    Args:
        job: What to generate.
        folder: Created if it does not exist; files in it that are not generated stay.

    Returns:
        What changed; files whose text is the same keep their times.

    Raises:
        InputError: As `prepare`; nothing has changed then.
        StorageError: A file cannot be read or written; nothing has changed then.
    """
    return prepare(job, folder).write()


def describe(job: Job) -> dict[str, object]:
    """Return what a job asks for, in JSON types, as the manifest keeps it."""
    narrowing = job.narrowing
    return {
        "target": f"vllm-{job.release.release}",
        "family": job.family,
        "archs": [str(arch) for arch in job.archs],
        "selector": job.selector,
        "models": [str(path) for path in narrowing.models],
        "formats": list(narrowing.formats),
        "max_tokens": narrowing.max_tokens,
        "activations": list(narrowing.activations),
        "group_sizes": list(narrowing.group_sizes),
        "qqq": job.qqq,
        "heuristic": None if job.heuristic is None else str(job.heuristic),
    }


def originals(job: Job) -> Originals:
    """Return the files that the release's own generator may have left in the folder."""
    one = family(job.family)
    return Originals(one.original_names(job), one.original_marker(job))


def depfile(job: Job, folder: Path) -> str:
    """Return a Makefile rule: the folder's root file depends on everything that decides what is rendered."""
    one = family(job.family)
    words = [_escape(path) for path in (folder / one.names(job)[0], *one.inputs(job))]
    return f"{words[0]}: " + " \\\n  ".join(words[1:]) + "\n"


def _escape(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(" ", "\\ ").replace("#", "\\#").replace("$", "$$")
