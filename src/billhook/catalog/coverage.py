"""Do ordered rules leave gaps, and can each of them ever be chosen? Answered exactly, by subtracting boxes.

For one kind of layer, activations and weights on one GPU target a rule is a box in (rows, n, k, experts). A
box is a tuple of half-open intervals (above, max]. A rule shadows later ones only where every format has a
tile of it that is legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ..dtypes import DType
from .rule import Rule

Box = tuple[tuple[float, float], ...]
Case = tuple[tuple[int, bool], ...]  # positions of the rules that apply, and whether they serve
AXES = tuple(Rule(tile="").bounds())
EVERYTHING: Box = ((0, math.inf),) * len(AXES)


class Kind(NamedTuple):
    """What rules tell apart besides numbers.

    Args:
        moe: Whether the layer has experts.
        activations: Their element type.
        weights: Their bits.
        target: Compute capability.
        suffix: "a" for formats that only code for this very capability has.
    """

    moe: bool
    activations: DType
    weights: int
    target: tuple[int, int]
    suffix: str = ""

    def __str__(self) -> str:
        layers = f"{'MoE' if self.moe else 'dense'} layers on {self.target[0]}.{self.target[1]}{self.suffix}"
        return f"{layers}, {self.activations} activations, {self.weights}-bit weights,"


def uncovered(box: Box, covers: Iterable[Box]) -> list[Box]:
    """Return what remains of a box after taking others out of it, as disjoint boxes."""
    rest = [box]
    for cover in covers:
        rest = [piece for one in rest for piece in _subtract(one, cover)]
    return rest


def unreachable(
    rules: Sequence[Rule], kinds: Iterable[Kind], serves: Callable[[Rule, Kind], bool]
) -> list[int]:
    """Return the positions of rules that no problem of any kind can choose.

    Args:
        rules: In order of precedence.
        kinds: Those that some tile is legal for.
        serves: Whether a tile of a rule exists for every format of a kind.
    """
    boxes = [_box(rule) for rule in rules]
    reached: set[int] = set()
    for case in _cases(rules, kinds, serves):
        shadows: list[Box] = []
        for position, wins in case:
            if position not in reached and uncovered(boxes[position], shadows):
                reached.add(position)
            if wins:
                shadows.append(boxes[position])
    return [position for position in range(len(rules)) if position not in reached]


def first_gap(
    rules: Sequence[Rule], kinds: Iterable[Kind], serves: Callable[[Rule, Kind], bool]
) -> str | None:
    """Return, in words, problems that no rule with a legal tile serves; None if there are none.

    Args:
        rules: In order of precedence.
        kinds: Those that some tile is legal for.
        serves: Whether a tile of a rule exists for every format of a kind.
    """
    for case, kind in _cases(rules, kinds, serves).items():
        gaps = uncovered(EVERYTHING, (_box(rules[position]) for position, wins in case if wins))
        if gaps:
            return f"{kind} with {_describe(gaps[0])}"
    return None


def _cases(
    rules: Sequence[Rule], kinds: Iterable[Kind], serves: Callable[[Rule, Kind], bool]
) -> dict[Case, Kind]:
    """Return what tells kinds apart, each with the first kind like it."""
    cases: dict[Case, Kind] = {}
    for kind in kinds:
        case = tuple(
            (position, serves(rule, kind))
            for position, rule in enumerate(rules)
            if rule.applies(kind.moe, kind.activations, kind.weights, kind.target)
        )
        cases.setdefault(case, kind)
    return cases


def _box(rule: Rule) -> Box:
    return tuple((bounds.above, bounds.max) for bounds in rule.bounds().values())


def _subtract(box: Box, cover: Box) -> list[Box]:
    """Return `box` minus `cover`: the slabs of `box` below and above `cover`, axis by axis."""
    if any(
        low >= cover_high or cover_low >= high
        for (low, high), (cover_low, cover_high) in zip(box, cover, strict=True)
    ):
        return [box]
    pieces: list[Box] = []
    inner = list(box)
    for axis, (cover_low, cover_high) in enumerate(cover):
        low, high = inner[axis]
        for slab in ((low, min(high, cover_low)), (max(low, cover_high), high)):
            if slab[0] < slab[1]:
                pieces.append((*inner[:axis], slab, *inner[axis + 1 :]))
        inner[axis] = (max(low, cover_low), min(high, cover_high))
    return pieces


def _describe(box: Box) -> str:
    words = []
    for name, (low, high) in zip(AXES, box, strict=True):
        if low > 0:
            words.append(f"{name} > {low:g}")
        if high < math.inf:
            words.append(f"{name} <= {high:g}")
    return ", ".join(words) or "any rows, n, k and experts"
