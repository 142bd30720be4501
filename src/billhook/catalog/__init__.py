"""What may exist, as data: tiles of the kernel families, and the rules that choose one.

`load` reads `native.toml` and `rules/native.toml` beside this file, or the same two files of another
folder, and checks that they agree: every rule names listed tiles, and times if it names several, can be
chosen by some problem, and together the rules serve every problem on every GPU target that a family has.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from ..config import Tile
from ..errors import ConfigError, InputError
from ..families import FAMILIES
from . import check
from .entry import Catalog, Format, Origin, Shape, all_formats, deepest
from .rule import Bounds, Rule, last_m
from .times import TileTimes

__all__ = [
    "Bounds",
    "Catalog",
    "Format",
    "Origin",
    "Rule",
    "Shape",
    "TileTimes",
    "deepest",
    "last_m",
    "load",
]

_FOLDER = Path(__file__).parent


class _TileRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    family: str
    m: tuple[int, ...]
    n: int
    k: int
    stages: int
    cluster: int = 1
    pingpong: bool = False
    grouped: bool = False


class _CatalogFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tiles: tuple[_TileRow, ...]
    formats: tuple[Format, ...] | None = None


class _RuleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]
    lists: dict[str, tuple[str, ...]] = {}
    times: tuple[TileTimes, ...] = ()


_File = TypeVar("_File", _CatalogFile, _RuleFile)


def load(folder: str | Path | None = None) -> Catalog:
    """Read and check a catalog.

    Args:
        folder: Holds `native.toml` and `rules/native.toml`; the installed one if None. Formats that the first
            lists are the only ones; all there are if it lists none.

    Raises:
        ConfigError: A file is missing, malformed, or the two do not agree; names file, line and value.
    """
    return _load(_FOLDER if folder is None else Path(folder))


@cache
def _load(folder: Path) -> Catalog:
    path, rules_path = folder / "native.toml", folder / "rules" / "native.toml"
    text, rules_text = _read(path), _read(rules_path)
    table = _decode(text, path, _CatalogFile)
    rule_table = _decode(rules_text, rules_path, _RuleFile)
    rules = _name_tiles(rule_table, rules_path)
    shapes = _expand(table.tiles, path, text)
    formats = all_formats() if table.formats is None else table.formats
    _check_formats(formats, path, text)
    if not rules:
        raise ConfigError(f"{rules_path}: holds no rule; add a [[rules]] table")
    origins = tuple(Origin(f"rules/{rules_path.name}", number) for number, _ in enumerate(rules, 1))
    catalog = Catalog(formats, shapes, rules, origins, rule_table.times)
    wrong_tile = check.wrong_tile(catalog)
    if wrong_tile:
        raise ConfigError(f"{path}: {wrong_tile}")
    wrong = check.wrong_rule(catalog) or check.wrong_order(catalog)
    if wrong:
        position, why = wrong
        raise ConfigError(f"{rules_path}{_line(rules_text, 'rules', position)}: rule {position + 1} {why}")
    wrong = check.wrong_times(catalog)
    if wrong:
        position, why = wrong
        raise ConfigError(f"{rules_path}{_line(rules_text, 'times', position)}: times {position + 1} {why}")
    return catalog


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read catalog file {path}: {error}") from error


def _decode(text: str, path: Path, kind: type[_File]) -> _File:
    try:
        return msgspec.toml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        place = re.search(r"\$\.(\w+)\[(\d+)\]", str(error))
        line = _line(text, place[1], int(place[2])) if place else ""
        raise ConfigError(f"{path}{line}: {error}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _line(text: str, table: str, position: int) -> str:
    """Return `:LINE` of the table's entry at `position`, "" if it is not written as `[[table]]`."""
    heads = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith(f"[[{table}]]")]
    return f":{heads[position]}" if position < len(heads) else ""


def _expand(rows: tuple[_TileRow, ...], path: Path, text: str) -> tuple[Shape, ...]:
    shapes: dict[str, Shape] = {}
    for position, row in enumerate(rows):
        place = f"{path}{_line(text, 'tiles', position)}"
        if row.family not in FAMILIES:
            raise ConfigError(f"{place}: unknown family {row.family!r}; there are {', '.join(FAMILIES)}")
        for tile_m in row.m:
            tile = Tile(tile_m, row.n, row.k, row.stages, row.cluster, row.pingpong)
            shape = Shape(row.family, tile, row.grouped)
            if shape.name in shapes:
                raise ConfigError(f"{place}: tile {shape.name} is listed twice; drop one")
            shapes[shape.name] = shape
    if not shapes:
        raise ConfigError(f"{path}: lists no tile; add a [[tiles]] table")
    return tuple(shapes.values())


def _name_tiles(table: _RuleFile, path: Path) -> tuple[Rule, ...]:
    """Return the rules with the tiles of lists in place of their names."""
    named = {name for rule in table.rules if rule.predicts for name in rule.tiles}
    for name in table.lists:
        if name not in named:
            raise ConfigError(
                f"{path}: no rule names the list {name!r} among several tiles, as in "
                f'`tile = ["{name}"]`; drop it'
            )
    return tuple(
        msgspec.structs.replace(
            rule, tile=tuple(tile for name in rule.tiles for tile in table.lists.get(name, (name,)))
        )
        if rule.predicts
        else rule
        for rule in table.rules
    )


def _check_formats(formats: tuple[Format, ...], path: Path, text: str) -> None:
    if not formats:
        raise ConfigError(f"{path}: lists no format; add a [[formats]] table, or leave `formats` out for all")
    for position, one in enumerate(formats):
        try:
            one.types()
        except InputError as error:
            raise ConfigError(f"{path}{_line(text, 'formats', position)}: {error}") from error
