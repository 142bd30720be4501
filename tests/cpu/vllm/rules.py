"""Hypothesis strategies for rule lists, over sizes small enough to try them all."""

from __future__ import annotations

from hypothesis import strategies as st

from billhook.vllm.heuristic import VARIABLES, Comparison, Rule, Tiling

LARGEST = 12  # every constant is below: all sizes above behave alike

_TILINGS = [Tiling((128, tokens), (1, 1, 1)) for tokens in (16, 32, 64)]


def comparisons() -> st.SearchStrategy[Comparison]:
    """A comparison with a small constant."""
    operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return st.builds(Comparison, st.sampled_from(VARIABLES), operators, st.integers(0, LARGEST - 2))


def rule_lists() -> st.SearchStrategy[list[Rule]]:
    """Up to six rules."""
    conditions = st.lists(comparisons(), max_size=3).map(tuple)
    return st.lists(st.builds(Rule, conditions, st.sampled_from(_TILINGS)), min_size=1, max_size=6)


def sizes() -> st.SearchStrategy[tuple[int, int, int]]:
    """M, N and K."""
    one = st.integers(1, LARGEST + 5)
    return st.tuples(one, one, one)
