"""The documented command line of Machete's generator script."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...errors import BillhookError
from ..documented import RELEASE, summary
from ..generate import generate
from ..job import Job
from ..release import load_release


def run_machete_script(arguments: Sequence[str], script: Path, release: str = RELEASE) -> int:
    """Run the documented command line `generate.py [OUT_DIR]`.

    Args:
        arguments: What follows the script's name.
        script: The script; without OUT_DIR files go into `generated/` beside it.
        release: The vLLM release whose tree receives the files.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong input; the last two with a message on stderr.
    """
    usage = f"usage: {script.name} [OUT_DIR]"
    if any(argument in ("-h", "--help") for argument in arguments):
        print(usage)
        return 0
    if len(arguments) > 1:
        print(f"{usage}\n{script.name}: error: expected at most OUT_DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else script.resolve().parent / "generated"
    try:
        changes = generate(Job("machete", load_release(release)), folder)
    except BillhookError as error:
        print(f"{script.name}: error: {error}", file=sys.stderr)
        return error.exit_code
    print(summary(changes, folder))
    return 0
