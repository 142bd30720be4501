"""Schedule heuristics: ordered rules over M, N and K, where the first that holds wins.

A condition is comparisons of M (tokens), N (output features) or K (input features) with an
integer, joined by `&&`; a rule without a condition always holds. The same rule is parsed
here, evaluated here, and rendered to the C++ of a dispatch function.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError

VARIABLES = ("M", "N", "K")
LARGEST = 2**31 - 1  # sizes fit an int32 in every kernel of this family

_OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_BLANK = re.compile(r"\s*")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_OPERATOR = re.compile(r"[<>=!]=?")
_NUMBER = re.compile(r"\d+(?!\w)")


class ConditionError(ConfigError):
    """A condition that cannot be read; `column` counts its characters from 0."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


@dataclass(frozen=True)
class Comparison:
    """One comparison, such as `K <= 16384`.

    Args:
        variable: "M", "N" or "K".
        op: One of `<  <=  >  >=  ==  !=`.
        value: What it is compared with.
        column: Where `value` stands in the condition's text, counted from 0.
    """

    variable: str
    op: str
    value: int
    column: int = 0

    def holds(self, size: int) -> bool:
        """Whether the comparison is true of `size`."""
        return _OPERATORS[self.op](size, self.value)

    @property
    def breaks(self) -> tuple[int, ...]:
        """The sizes from which on the answer may be another one than just below."""
        if self.op in ("==", "!="):
            return (self.value, self.value + 1)
        return (self.value + 1,) if self.op in ("<=", ">") else (self.value,)

    def __str__(self) -> str:
        return f"{self.variable} {self.op} {self.value}"


@dataclass(frozen=True)
class Tiling:
    """What a rule chooses: the CTA tile, the cluster and who computes a tile.

    Args:
        tile_mn: Output features and tokens of one CTA tile, in the order of `ScheduleConfig.tile_shape_mn`.
        cluster_mnk: CTAs of a cluster along each mode.
        pingpong: Whether warpgroups take whole tiles in turns, instead of sharing each.
    """

    tile_mn: tuple[int, int]
    cluster_mnk: tuple[int, int, int]
    pingpong: bool = False

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.tile_mn)) + "_" + "x".join(map(str, self.cluster_mnk))
        return f"{sizes}_pingpong" if self.pingpong else sizes


@dataclass(frozen=True)
class Rule:
    """One rule of an ordered list.

    Args:
        comparisons: All must hold; none means the rule always holds.
        tiling: What the rule chooses.
        line: Line of the rule in its file, from 1; 0 if it came from no file.
        column: Column of the condition's text (of the rule, if it has no condition) in that line, from 1.
    """

    comparisons: tuple[Comparison, ...]
    tiling: Tiling
    line: int = 0
    column: int = 0

    def holds(self, m: int, n: int, k: int) -> bool:
        """Whether the rule's condition is true of these sizes."""
        sizes = {"M": m, "N": n, "K": k}
        return all(comparison.holds(sizes[comparison.variable]) for comparison in self.comparisons)

    @property
    def condition(self) -> str | None:
        """The condition as C++ (and as it would be written in a rule file); None if it always holds."""
        return " && ".join(map(str, self.comparisons)) or None

    def __str__(self) -> str:
        return f"{self.condition or 'otherwise'} -> {self.tiling}"


def parse_condition(text: str) -> tuple[Comparison, ...]:
    """Parse a condition such as `M > 256 && K <= 16384`.

    Raises:
        ConditionError: The text is no such condition; the message says what was expected where.
    """

    def expect(pattern: re.Pattern[str], what: str, at: int) -> re.Match[str]:
        match = pattern.match(text, at)
        if match is None:
            found = f", found {text[at : at + 12]!r}" if at < len(text) else " at the end"
            raise ConditionError(f"expected {what}{found}", at)
        return match

    def skip_blanks(at: int) -> int:
        match = _BLANK.match(text, at)
        return match.end() if match else at

    comparisons: list[Comparison] = []
    at = skip_blanks(0)
    while True:
        variable = expect(_VARIABLE, "M, N or K", at)
        if variable[0] not in VARIABLES:
            raise ConditionError(f"unknown variable {variable[0]!r}; a condition compares M, N or K", at)
        at = skip_blanks(variable.end())
        op = expect(_OPERATOR, "a comparison (<, <=, >, >=, ==, !=)", at)
        if op[0] not in _OPERATORS:
            raise ConditionError(f"{op[0]!r} is no comparison; use <, <=, >, >=, == or !=", at)
        at = skip_blanks(op.end())
        number = expect(_NUMBER, "a whole number", at)
        if int(number[0]) > LARGEST:
            raise ConditionError(f"{number[0]} is larger than any size can be ({LARGEST})", at)
        comparisons.append(Comparison(variable[0], op[0], int(number[0]), at))
        at = skip_blanks(number.end())
        if at == len(text):
            return tuple(comparisons)
        if not text.startswith("&&", at):
            raise ConditionError(f"expected '&&' or the end, found {text[at : at + 12]!r}", at)
        at = skip_blanks(at + 2)


def choose(rules: Sequence[Rule], m: int, n: int, k: int) -> Rule | None:
    """Return the first rule that holds for a GEMM of m tokens, n output and k input features."""
    return next((rule for rule in rules if rule.holds(m, n, k)), None)


def unique_tilings(rules: Iterable[Rule]) -> list[Tiling]:
    """Return what the rules choose, without repeats, in order of first use."""
    return list(dict.fromkeys(rule.tiling for rule in rules))


def chosen_over_m(rules: Sequence[Rule], max_m: int, n: int, k: int) -> dict[Tiling, tuple[int, int]]:
    """Return every tiling chosen for m = 1..max_m at this n and k, with the least and greatest such m.

    Exact: the choice can change only where a comparison of M does.
    """
    comparisons = [one for rule in rules for one in rule.comparisons if one.variable == "M"]
    starts = sorted({1} | {at for one in comparisons for at in one.breaks if 1 < at <= max_m})
    found: dict[Tiling, tuple[int, int]] = {}
    for start, end in zip(starts, [*(at - 1 for at in starts[1:]), max_m], strict=True):
        rule = choose(rules, start, n, k)
        if rule is not None:
            first = found.get(rule.tiling, (start, end))[0]
            found[rule.tiling] = (first, end)
    return found
