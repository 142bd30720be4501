"""What several commands read from their options, and the names they show for it."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError


def parse_sizes(texts: Iterable[str], option: str = "--tp") -> list[int]:
    """Read positive whole numbers, separated by commas or given by repeating the option; repeats are dropped.

    Raises:
        InputError: None is given, or one is not a positive whole number.
    """
    words = [word.strip() for text in texts for word in text.split(",") if word.strip()]
    wrong = next((word for word in words if not word.isdecimal() or int(word) < 1), None)
    if wrong is not None or not words:
        got = "nothing" if wrong is None else repr(wrong)
        raise InputError(f"{option} takes positive whole numbers such as 1 or 1,2,4 (got {got})")
    return list(dict.fromkeys(int(word) for word in words))


def layer_name(layer_id: str, *, one_model: bool) -> str:
    """Return a layer's id (`MODEL/tpTP/NAME`) as tables show it: without what all have in common."""
    return layer_id.split("/", 1)[1].removeprefix("tp1/") if one_model else layer_id
