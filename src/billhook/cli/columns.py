"""Plain text tables, and lines that fit the terminal."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from shutil import get_terminal_size


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


def fold(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, those too wide for the terminal broken at spaces and continued below their last column.

    Args:
        lines: Columns of a line are two spaces or more apart.
    """
    width = get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        if not width or len(line) <= width:
            yield line
            continue
        columns = re.match(r"(?:.*\S)? {2,}", line)
        indent = columns.end() if columns and columns.end() < width // 2 else 4
        yield from textwrap.wrap(
            line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )
