"""What is asked of a foreign tree's generator, and what a kernel family answers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from ..arch import Arch
from ..emit.source import SourceFile
from ..errors import InputError
from .release import Release

# family -> its module, which implements `Family`.
FAMILIES = {
    "marlin-moe": "billhook.vllm.marlin",
    "marlin": "billhook.vllm.marlin",
    "machete": "billhook.vllm.machete",
}
SELECTORS = ("chain", "switch")
# The code that decides what a narrowed generation keeps.
NARROWING_CODE = (
    "vllm/narrow.py",
    "vllm/host_model.py",
    *(f"models/{name}.py" for name in ("fields", "layer", "model", "quantization")),
)


@dataclass(frozen=True)
class Narrowing:
    """The requests that a narrowed generation must serve; all empty means everything.

    Args:
        models: Model configs, or the folders that hold them, whose layers must be served.
        formats: Weight formats, by the names of the release's data file.
        max_tokens: Largest number of tokens in one call; None for no limit.
        activations: Keys of `release.ACTIVATIONS`.
        group_sizes: Weights along k that share a scale; -1 for channel scales.
    """

    models: tuple[Path, ...] = ()
    formats: tuple[str, ...] = ()
    max_tokens: int | None = None
    activations: tuple[str, ...] = ()
    group_sizes: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self != EVERYTHING

    @property
    def configs(self) -> tuple[Path, ...]:
        """The models' config files."""
        return tuple(path / "config.json" if path.is_dir() else path for path in self.models)


EVERYTHING = Narrowing()


@dataclass(frozen=True)
class Job:
    """One family of one release, to be generated for some targets.

    Args:
        family: A key of `FAMILIES`.
        release: The release whose tree receives the files.
        archs: GPU targets; Machete, which is for 9.0a alone, needs none.
        selector: Form of Marlin's `kernel_selector.h`: "chain" as documented, or "switch".
        narrowing: Which requests must be served.
        qqq: Also generate Machete's types with 8-bit activations.
        heuristic: A file of schedule rules in place of the release's; Machete only.
    """

    family: str
    release: Release
    archs: tuple[Arch, ...] = ()
    selector: str = "chain"
    narrowing: Narrowing = EVERYTHING
    qqq: bool = False
    heuristic: Path | None = None


class Family(Protocol):
    """What a family's module offers; the first name it gives is the file that refers to all the others."""

    def names(self, job: Job) -> list[str]:
        """Return the names of the files to be written, without rendering them."""

    def render(self, job: Job) -> list[SourceFile]:
        """Return the files to be written, in the order of `names`."""

    def inputs(self, job: Job) -> list[Path]:
        """Return the files whose content decides what is rendered: code, templates, data."""

    def original_names(self, job: Job) -> frozenset[str]:
        """Return every file name that the release's own generator can write."""

    def original_marker(self, job: Job) -> str:
        """Return text by which a file of the release's own generator is known."""


def family(name: str) -> Family:
    """Return the module of a family.

    Raises:
        InputError: No such family; the message lists those that exist.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown kernel family {name!r}; known families: {', '.join(FAMILIES)}")
    return cast(Family, importlib.import_module(FAMILIES[name]))


def package_files(*names: str) -> Sequence[Path]:
    """Return files of this package by their names relative to it, such as `emit/source.py`."""
    package = Path(__file__).parents[1]
    return [package / name for name in names]
