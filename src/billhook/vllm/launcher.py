"""What the launchers call that `tree.install` puts in the place of a tree's generator scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .release import Release, load_release


def run_script(release: str, family: str, arguments: Sequence[str], script: Path) -> int:
    """Run the command line of a tree's generator script.

    Args:
        release: The tree's release.
        family: What the script writes; where one script serves dense and MoE, the output folder decides.
        arguments: What follows the script's name.
        script: The script's path.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input; the last two with a message on stderr.
    """
    if family == "machete":
        from .machete.documented import run_machete_script

        return run_machete_script(arguments, script, release)
    from .documented import run_marlin_script

    if len(arguments) == 2:
        family = _family_of(load_release(release), Path(arguments[1]), family)
    return run_marlin_script(arguments, script, release, family)


def _family_of(release: Release, folder: Path, default: str) -> str:
    """Return the family that the tree keeps in a folder of this name."""
    for family, name in release.marlin.folders.items():
        if folder.resolve().parts[-2:] == Path(name).parts:
            return family
    return default
