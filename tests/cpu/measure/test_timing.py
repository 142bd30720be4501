import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.measure.timing import (
    FEWEST_CALLS,
    LEAST_CALLS,
    MOST_CALLS,
    balanced_order,
    calls_for,
    quantile,
    summarize,
)


@given(st.floats(0.5, 1e5), st.integers(1, 24))
def test_calls_rotate_evenly_over_the_copies(expected_us: float, copies: int) -> None:
    calls = calls_for(expected_us, copies)
    assert calls % copies == 0
    assert (FEWEST_CALLS if expected_us > 500 else LEAST_CALLS) <= calls < MOST_CALLS + copies


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_spread_is_ordered_and_within_the_samples(samples: list[float]) -> None:
    times = summarize(samples, 24, 12)
    assert min(samples) <= times.p10_us <= times.median_us <= times.p90_us <= max(samples)
    assert times.rounds == len(samples)


def test_quantiles_interpolate() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert math.isclose(quantile([0.0, 10.0], 0.1), 1.0)


@pytest.mark.parametrize(("expected", "calls"), [(1.0, 96), (10.0, 50), (25.0, 20), (1e3, 10), (1e4, 4)])
def test_short_calls_are_repeated_more(expected: float, calls: int) -> None:
    assert calls_for(expected, 1) == calls


@pytest.mark.parametrize("count", range(1, 9))
def test_each_contestant_follows_each_other_equally_often(count: int) -> None:
    orders = [balanced_order(count, step) for step in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    followed = Counter(pair for order in orders for pair in pairwise(order))
    assert set(followed.values()) <= {2} and len(followed) == count * (count - 1)
