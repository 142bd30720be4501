"""Where the entries of a `[[name]]` array stand in a TOML file.

TOML parsers give values without positions; messages about a rule file need them. This scanner
knows just enough of TOML's grammar (comments, the four string forms, keys, array headers) to
find the line and column of each key of each entry; the values themselves come from the parser.

Source: TOML v1.0.0, sections "Comment", "Keys", "String", "Array of Tables".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
      (?P<comment>\#[^\n]*)
    | (?P<string>\"{3}(?:\\.|[^\\])*?\"{3} | '{3}.*?'{3} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<header>^[ \t]*\[\[[ \t]*(?P<array>[\w.-]+)[ \t]*\]\])
    | (?P<table>^[ \t]*\[[^\[\n]*\])
    | (?P<key>[\w-]+)[ \t]*=[ \t]*
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Position:
    """A place in a file: line and column, both from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Entry:
    """One `[[name]]` entry: where it begins, and where the value of each of its keys does."""

    start: Position
    keys: dict[str, Position] = field(default_factory=dict)


def position(text: str, offset: int) -> Position:
    """Return the line and column of the character at `offset`."""
    return Position(text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


def entries(text: str, name: str) -> list[Entry]:
    """Return the `[[name]]` entries of a TOML document, in order."""
    found: list[Entry] = []
    inside = False
    for token in _TOKEN.finditer(text):
        if token["header"]:
            inside = token["array"] == name
            if inside:
                found.append(Entry(position(text, token.start("header") + token["header"].index("["))))
        elif token["table"]:
            inside = False
        elif token["key"] and inside:
            found[-1].keys.setdefault(token["key"], position(text, token.end()))
    return found
