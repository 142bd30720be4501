"""Gaps and unreachable rules, against trying every cell of the grid that the bounds span."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.catalog.coverage import Kind, first_gap, unreachable
from billhook.catalog.rule import ANY, Bounds, Rule
from billhook.dtypes import BF16, E4M3FN, S8

KINDS = [
    Kind(*one)
    for one in itertools.product((False, True), (BF16, E4M3FN, S8), (4, 8), [(8, 0), (8, 6), (9, 0)])
    if one[1] == BF16 or one[3] == (9, 0)
] + [Kind(False, E4M3FN, 4, (9, 0), "a")]
VALUES = [1, 2, 3, 5, 8]
TILES = ["small", "big"]


def serves(rule: Rule, kind: Kind) -> bool:
    if kind.suffix:
        return "big" in rule.tiles
    return "small" in rule.tiles or (kind.target != (8, 6) and not (kind.moe and kind.activations == S8))


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    low, high = sorted(
        draw(st.lists(st.sampled_from([0, *VALUES, math.inf]), min_size=2, max_size=2, unique=True))
    )
    return Bounds(above=low, max=high)


rules = st.lists(
    st.builds(
        Rule,
        tile=st.sampled_from([*TILES, ("small", "big")]),
        rows=st.just(ANY) | bounds(),
        n=st.just(ANY) | bounds(),
        k=st.just(ANY) | bounds(),
        experts=st.sampled_from([ANY, Bounds(max=2), Bounds(above=2)]),
        moe=st.none() | st.booleans(),
        arch=st.just(()) | st.just(("8.6",)) | st.just(("8.0", "9.0")),
        activations=st.none() | st.sampled_from([8, 16, ("e4m3fn",), ("bf16", "s8")]),
        weights=st.none() | st.sampled_from([4, 8]),
    ),
    max_size=7,
)


@settings(deadline=None)
@given(rules)
def test_agrees_with_trying_everything(found: list[Rule]) -> None:
    cells = [*VALUES, 9]  # one number of every interval between bounds
    winners = set()
    served_everywhere = True
    for kind, *place in itertools.product(KINDS, cells, cells, cells, (1, 3)):
        served = False
        for position, rule in enumerate(found):
            inside = all(value in one for value, one in zip(place, rule.bounds().values(), strict=True))
            if not rule.applies(*kind[:4]) or not inside:
                continue
            winners.add(position)
            if serves(rule, kind):
                served = True
                break
        served_everywhere &= served
    assert unreachable(found, KINDS, serves) == [i for i in range(len(found)) if i not in winners]
    assert (first_gap(found, KINDS, serves) is None) == served_everywhere


def test_a_gap_is_told_in_words() -> None:
    found = [Rule("small", rows=Bounds(max=8)), Rule("small", n=Bounds(max=64))]
    wide = first_gap(found, [Kind(False, BF16, 4, (9, 0))], serves)
    assert wide == "dense layers on 9.0, bf16 activations, 4-bit weights, with rows > 8, n > 64"
    narrow = first_gap(found, [Kind(True, S8, 8, (9, 0))], serves)
    assert narrow == "MoE layers on 9.0, s8 activations, 8-bit weights, with rows > 8, n > 64"
    folded = first_gap([Rule("big", rows=Bounds(max=8))], [Kind(False, E4M3FN, 4, (9, 0), "a")], serves)
    assert folded == "dense layers on 9.0a, e4m3fn activations, 4-bit weights, with rows > 8"


def test_types_of_as_many_bits_are_told_apart() -> None:
    both = [Kind(False, a, 4, (9, 0)) for a in (E4M3FN, S8)]
    one = [Rule("small", activations=("e4m3fn",))]
    assert (
        first_gap(one, both, serves)
        == "dense layers on 9.0, s8 activations, 4-bit weights, with any rows, n, k and experts"
    )
    assert first_gap([*one, Rule("small", activations=8)], both, serves) is None
    assert unreachable([*one, Rule("small", activations=8)], both, serves) == []
    assert unreachable([Rule("small", activations=8), *one], both, serves) == [1]


def test_weights_are_told_apart_by_their_bits() -> None:
    both = [Kind(False, S8, bits, (9, 0)) for bits in (4, 8)]
    one = [Rule("small", weights=8)]
    gap = first_gap(one, both, serves)
    assert gap == "dense layers on 9.0, s8 activations, 4-bit weights, with any rows, n, k and experts"
    assert first_gap([*one, Rule("small")], both, serves) is None
    assert unreachable([*one, Rule("small")], both, serves) == []
    assert unreachable([Rule("small"), *one], both, serves) == [1]
    assert one[0].describe() == "8-bit weights"


def test_bounds_in_words() -> None:
    assert Bounds(above=8, max=16).describe("rows") == "8 < rows <= 16"
    assert Bounds(above=8).describe("rows") == "rows > 8"
    assert Bounds(max=16).describe("n") == "n <= 16"
    assert ANY.describe("n") == ""
    assert Rule("small").describe() == "otherwise"
    assert Rule("small", activations=8).describe() == "8-bit activations"
    assert Rule("small", activations=("e4m3fn", "s8")).describe() == "e4m3fn or s8 activations"
    assert Rule("small", moe=True, k=Bounds(max=4), arch=("9.0",)).describe() == "moe, k <= 4, arch 9.0"
