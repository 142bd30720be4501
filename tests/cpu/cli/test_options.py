from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.cli.options import parse_percent, parse_sizes
from billhook.errors import InputError


@given(st.lists(st.integers(1, 64), min_size=1, max_size=8))
def test_commas_and_repetition_say_the_same(sizes: list[int]) -> None:
    expected = list(dict.fromkeys(sizes))
    assert parse_sizes([",".join(map(str, sizes))]) == expected
    assert parse_sizes(map(str, sizes)) == expected


@pytest.mark.parametrize("text", ["", ",", "0", "-1", "1,x", "1.5", "²"])
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(InputError, match="--tp takes positive whole numbers"):
        parse_sizes([text])


@pytest.mark.parametrize(("text", "share"), [("0", 0), ("3", 0.03), ("2.5", 0.025), ("100", 1)])
def test_a_percentage_is_read_as_a_share(text: str, share: float) -> None:
    assert parse_percent(text) == share


@pytest.mark.parametrize("text", ["", "-1", "100.5", "nan", "inf", "3%", "three"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--within takes a percentage from 0 to 100, such as 3 \(got"):
        parse_percent(text)
