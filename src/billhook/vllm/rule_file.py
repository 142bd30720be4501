"""Rule files: a schedule heuristic as TOML, read with the position of everything that is wrong.

Each `[[rule]]` table has `when`, a condition such as "M > 256 && K <= 16384" (left out: the rule always
holds), and `use`, a tile (output features x tokens) and a cluster (m x n x k) such as "128x128_2x1x1". Rules
for our own kernels may add "_pingpong".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .heuristic import ConditionError, Rule, Tiling, parse_condition
from .toml_positions import Entry, Position, entries

DEFAULT = Path(__file__).parents[1] / "catalog" / "vllm" / "machete_rules.toml"

_TILING = re.compile(r"(\d+)x(\d+)_(\d+)x(\d+)x(\d+)(_pingpong)?")
_KEYS = ("when", "use")


def load_rules(path: Path = DEFAULT) -> list[Rule]:
    """Read a rule file.

    Args:
        path: The TOML file; by default the rules vLLM's releases carry.

    Raises:
        ConfigError: The file cannot be read, or is no rule file; where a place in it is wrong, the message
            begins with `FILE:LINE:COLUMN`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_rules(text, str(path))


def parse_rules(text: str, name: str) -> list[Rule]:
    """Parse the text of a rule file; `name` begins the messages.

    Raises:
        ConfigError: The text is no rule file; the message begins with `NAME:LINE:COLUMN`.
    """
    document = _decode(text, name)
    unknown = sorted(set(document) - {"rule"})
    if unknown:
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}; a rule file holds [[rule]] tables only")
    tables = document.get("rule", [])
    places = entries(text, "rule")
    if not isinstance(tables, list) or len(places) != len(tables):
        raise ConfigError(f"{name}: write each rule as a [[rule]] table of its own")
    if not tables:
        raise ConfigError(f"{name}: holds no [[rule]]")
    return [_rule(table, place, name) for table, place in zip(tables, places, strict=True)]


def parse_tiling(text: str) -> Tiling:
    """Parse `128x256_2x1x1` or `128x64_1x1x1_pingpong`.

    Raises:
        ConfigError: It is not of that form, or no such kernel can exist; the message says why.
    """
    match = _TILING.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no schedule; write tile and cluster like 128x256_2x1x1")
    features, tokens, *cluster = (int(match[at]) for at in range(1, 6))
    if features not in (128, 256):
        # Two consumer warpgroups share the tile's output features, and wgmma takes 64 at a time.
        raise ConfigError(f"{text!r}: the tile's first number must be 128 or 256 (got {features})")
    if tokens % 8 or not 8 <= tokens <= 256:
        raise ConfigError(f"{text!r}: the tile's second number must be 8, 16, ... 256 (got {tokens})")
    if cluster[2] != 1:
        raise ConfigError(f"{text!r}: the cluster's third number must be 1 (got {cluster[2]})")
    if any(size not in (1, 2, 4, 8) for size in cluster) or cluster[0] * cluster[1] > 8:
        raise ConfigError(f"{text!r}: a cluster holds 1, 2, 4 or 8 CTAs")
    return Tiling((features, tokens), (cluster[0], cluster[1], cluster[2]), match[6] is not None)


def _decode(text: str, name: str) -> dict[str, Any]:
    import msgspec

    try:
        document: dict[str, Any] = msgspec.toml.decode(text)
    except msgspec.DecodeError as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f":{place[1]}:{place[2]}" if place else f":{len(text.splitlines())}:1"
        reason = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise ConfigError(f"{name}{where}: {reason[0].lower()}{reason[1:]}") from None
    return document


def _rule(table: dict[str, Any], place: Entry, name: str) -> Rule:
    def fail(message: str, at: Position) -> ConfigError:
        return ConfigError(f"{name}:{at.line}:{at.column}: {message}")

    for key, value in table.items():
        at = place.keys.get(key, place.start)
        if key not in _KEYS:
            raise fail(f"unknown key {key!r}; a rule has `when` and `use`", at)
        if not isinstance(value, str):
            raise fail(f"`{key}` must be a string (got {value!r})", at)
    if "use" not in table:
        raise fail('the rule says no `use`; write use = "128x128_2x1x1"', place.start)
    when = place.keys.get("when", place.start)
    text = when.column + 1 if "when" in table else when.column  # the text starts after its quote
    try:
        comparisons = parse_condition(table["when"]) if "when" in table else ()
    except ConditionError as error:
        raise fail(str(error), Position(when.line, text + error.column)) from None
    try:
        tiling = parse_tiling(table["use"])
    except ConfigError as error:
        raise fail(str(error), place.keys["use"]) from None
    return Rule(comparisons, tiling, when.line, text)
