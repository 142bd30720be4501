"""What the emitters hand on: the text of one file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class SourceFile:
    """One generated file.

    Args:
        path: Where it goes, relative to the output folder, with `/` between parts.
        text: Its whole content.
    """

    path: str
    text: str
