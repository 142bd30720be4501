"""Conditions are read, evaluated and rendered as written; what is wrong is named with its place."""

from __future__ import annotations

import pytest
from cpu.vllm.machete_table import GRID, SCHEDULES, published_choice
from cpu.vllm.rules import rule_lists, sizes
from hypothesis import given
from hypothesis import strategies as st

from billhook.vllm.heuristic import (
    Comparison,
    ConditionError,
    Rule,
    choose,
    chosen_over_m,
    parse_condition,
    unique_tilings,
)
from billhook.vllm.rule_file import load_rules


def test_the_shipped_rules_are_the_published_ones() -> None:
    rules = load_rules()
    assert [str(tiling) for tiling in unique_tilings(rules)] == SCHEDULES
    for m, n, k in GRID:
        rule = choose(rules, m, n, k)
        assert rule is not None
        assert str(rule.tiling) == published_choice(m, n, k)


def test_reads_comparisons_joined_by_and() -> None:
    read = parse_condition("  M>256 &&K <= 16384&& N != 7 ")
    assert read == (
        Comparison("M", ">", 256, 4),
        Comparison("K", "<=", 16384, 15),
        Comparison("N", "!=", 7, 28),
    )


@given(rules=rule_lists())
def test_what_is_rendered_reads_back(rules: list[Rule]) -> None:
    for rule in rules:
        if rule.condition is not None:
            again = parse_condition(rule.condition)
            assert [str(one) for one in again] == [str(one) for one in rule.comparisons]


@given(rules=rule_lists(), at=sizes())
def test_a_rule_holds_as_its_condition_does_in_python(rules: list[Rule], at: tuple[int, int, int]) -> None:
    names = dict(zip("MNK", at, strict=True))
    for rule in rules:
        text = (rule.condition or "True").replace("&&", "and")
        assert rule.holds(*at) == eval(text, {}, names)


@given(rules=rule_lists(), n=st.integers(1, 30), k=st.integers(1, 30), max_m=st.integers(1, 40))
def test_all_choices_over_m_are_found(rules: list[Rule], n: int, k: int, max_m: int) -> None:
    tried = [choose(rules, m, n, k) for m in range(1, max_m + 1)]
    found = chosen_over_m(rules, max_m, n, k)
    assert set(found) == {rule.tiling for rule in tried if rule}
    for tiling, (first, last) in found.items():
        at = [m for m, rule in enumerate(tried, 1) if rule and rule.tiling == tiling]
        assert (first, last) == (at[0], at[-1])


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "expected M, N or K at the end"),
        ("M", 1, "expected a comparison (<, <=, >, >=, ==, !=) at the end"),
        ("M > ", 4, "expected a whole number at the end"),
        ("M > 4 &&", 8, "expected M, N or K at the end"),
        ("M > 4 & K > 1", 6, "expected '&&' or the end, found '& K > 1'"),
        ("M > 4 || K > 1", 6, "expected '&&' or the end, found '|| K > 1'"),
        ("M > 4 && X > 1", 9, "unknown variable 'X'; a condition compares M, N or K"),
        ("M = 4", 2, "'=' is no comparison; use <, <=, >, >=, == or !="),
        ("M > -4", 4, "expected a whole number, found '-4'"),
        ("M > 4k", 4, "expected a whole number, found '4k'"),
        ("M > 1e9", 4, "expected a whole number, found '1e9'"),
        ("K < 99999999999", 4, "99999999999 is larger than any size can be (2147483647)"),
        ("4096 >= K", 0, "expected M, N or K, found '4096 >= K'"),
    ],
)
def test_a_malformed_condition_is_refused_at_its_place(text: str, column: int, message: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(text)
    assert str(caught.value) == message
    assert caught.value.column == column
