"""Few are kept, one for every want: nearly as few as trying all sets finds, and the same each time."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from billhook.thin import keep_few

ORDER = tuple("abcdefg")


def wants() -> st.SearchStrategy[dict[tuple[str, ...], int]]:
    enough = st.lists(st.sampled_from(ORDER), min_size=1, unique=True).map(tuple)
    return st.dictionaries(enough, st.integers(1, 100), max_size=12)


def does(kept: tuple[str, ...], wanted: dict[tuple[str, ...], int]) -> bool:
    return all(set(kept) & set(enough) for enough in wanted)


@given(wants())
def test_every_want_has_one_none_is_needless_and_few_are_kept(wanted: dict[tuple[str, ...], int]) -> None:
    kept = tuple(keep_few(wanted, ORDER))
    assert does(kept, wanted)
    assert not any(does(tuple(set(kept) - {one}), wanted) for one in kept)
    least = next(n for n in range(8) if any(does(few, wanted) for few in combinations(ORDER, n)))
    assert len(kept) <= least + 2


@given(wants())
def test_the_order_of_wants_makes_no_difference(wanted: dict[tuple[str, ...], int]) -> None:
    turned = dict(reversed([(enough[::-1], count) for enough, count in wanted.items()]))
    same = {tuple(sorted(enough)): count for enough, count in wanted.items()}
    if len(same) == len(wanted):  # no want is there twice
        assert keep_few(turned, ORDER) == keep_few(wanted, ORDER)


def test_what_alone_would_do_serves_others_too() -> None:
    assert keep_few({("b",): 1, ("a", "b"): 100, ("a", "c"): 1}, "abc") == ["a", "b"]
    assert keep_few({("b",): 1, ("a", "b"): 100}, "abc") == ["b"]


def test_what_does_for_the_most_is_kept_and_the_first_of_equals() -> None:
    assert keep_few({("a", "b"): 1, ("b", "c"): 1}, "abc") == ["b"]
    assert keep_few({("a", "b"): 1}, "ba") == ["b"]
    assert keep_few({}, "abc") == []


def test_what_became_needless_is_dropped() -> None:
    # b does for the most at first, but what a and c are kept for is all that it does for
    assert keep_few({("a", "b"): 5, ("b", "c"): 5, ("a", "d"): 4, ("c", "e"): 4}, "abcde") == ["a", "c"]
