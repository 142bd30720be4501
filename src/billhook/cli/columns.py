"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[object]]) -> list[str]:
    """Return rows as lines with aligned columns; columns of numbers (and `-`) go to the right.

    Args:
        rows: The heading, then at least one row; all of one length.
    """
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    to_right = [
        all(isinstance(value, int) or value == "-" for value in column[1:])
        for column in zip(*rows, strict=True)
    ]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in cells
    ]
