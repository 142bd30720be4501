"""Generate one family of a vLLM release into a folder, touching only what changes."""

from __future__ import annotations

from pathlib import Path

from ..emit.manifest import hash_inputs, is_current, read_manifest
from ..emit.writer import Changes, Originals, compare, write
from ..errors import InputError
from .job import Job, family


def generate(job: Job, folder: Path, check: bool = False) -> Changes:
    """Make a folder hold the generated files of a job.

    If the folder's manifest says that request and inputs are the same, and the files'
    hashes agree, nothing is rendered.

    Args:
        job: What to generate.
        folder: Created if it does not exist; files in it that are not generated stay.
        check: Write nothing, only tell what would change.

    Returns:
        What changed or, with `check`, would change.

    Raises:
        InputError: The folder is a file, or holds another family's generated files; or a model config or
            rule file of the job cannot be read.
        StorageError: A file cannot be read or written; nothing has changed then.
    """
    manifest = read_manifest(folder)
    if manifest is not None and manifest.request.get("family") != job.family:
        raise InputError(
            f"{folder} holds the generated files of family {manifest.request.get('family')!r}; "
            f"choose another folder for {job.family!r}"
        )
    request, inputs = describe(job), hash_inputs(family(job.family).inputs(job))
    if manifest is not None and is_current(folder, request, inputs):
        return Changes(unchanged=tuple(manifest.files))
    files = family(job.family).render(job)
    if check:
        return compare(folder, files, originals(job))
    return write(folder, files, request, inputs, originals(job))


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
