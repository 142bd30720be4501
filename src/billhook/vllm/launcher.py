"""What the launchers call that `tree.install` puts in the place of a tree's generator scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import documented
from .job import Narrowing
from .release import Release, load_release


def run_script(
    release: str,
    family: str,
    arguments: Sequence[str],
    script: Path,
    narrowing: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Run the command line of a tree's generator script.

    Args:
        release: The tree's release.
        family: What the script writes; where one script serves dense and MoE, the output folder decides.
        arguments: What follows the script's name.
        script: The script's path.
        narrowing: Fields of `Narrowing`, models as text.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input; the last two with a message on stderr.
    """
    if family != "machete" and len(arguments) == 2:
        family = _family_of(load_release(release), Path(arguments[1]), family)
    models = tuple(map(Path, narrowing.get("models", ())))
    return documented.run_script(
        family, arguments, script, release, Narrowing(**{**narrowing, "models": models})
    )


def _family_of(release: Release, folder: Path, default: str) -> str:
    """Return the family that the tree keeps in a folder of this name."""
    for family, name in release.marlin.folders.items():
        if folder.resolve().parts[-2:] == Path(name).parts:
            return family
    return default
