"""Which activations multiply a weight: what is asked for, what kernels take, and what experts agree on."""

from __future__ import annotations

import pytest

from billhook.dtypes import E4M3FN, S8, U4B8, U8B128, DType
from billhook.errors import InputError, UnsupportedError
from billhook.models import Chosen, WeightFormat, agree, choose_activations, fold_format, read_narrow

EXACT = WeightFormat(U4B8, 128)
ASKS = WeightFormat(U4B8, 128, activations=E4M3FN)
FOLDED = WeightFormat(U4B8, 128, E4M3FN, activations=E4M3FN)
WIDE = Chosen(None)


def served(kind: DType) -> str | None:
    return None


def unserved(kind: DType) -> str | None:
    return f"no kernel takes {kind}"


@pytest.mark.parametrize(
    ("stored", "narrow", "chosen"),
    [
        (EXACT, False, WIDE),
        (EXACT, True, WIDE),
        (ASKS, False, WIDE),
        (ASKS, True, Chosen(E4M3FN)),
        (FOLDED, False, Chosen(E4M3FN)),
        (WeightFormat(U8B128, -1, activations=S8), True, Chosen(S8)),
    ],
)
def test_8_bits_are_chosen_where_both_ask_for_them(
    stored: WeightFormat, narrow: bool, chosen: Chosen
) -> None:
    assert choose_activations(stored, narrow, served) == chosen


def test_without_a_kernel_inputs_stay_wide_and_folded_weights_are_refused() -> None:
    assert choose_activations(ASKS, True, unserved) == Chosen(None, "no kernel takes e4m3fn")
    assert choose_activations(EXACT, True, unserved) == WIDE
    with pytest.raises(UnsupportedError, match="no kernel takes e4m3fn"):
        choose_activations(FOLDED, False, unserved)


def test_experts_agree() -> None:
    narrow, no_kernel = Chosen(E4M3FN), Chosen(None, "no kernel")
    assert agree([], []) == []
    assert agree([ASKS, ASKS], [narrow, narrow]) == [narrow, narrow]
    assert agree([EXACT, EXACT], [WIDE, WIDE]) == [WIDE, WIDE]
    first, second = agree([ASKS, ASKS], [narrow, no_kernel])
    assert first.narrow is None
    assert "w13 and w2" in first.why_wide
    assert second == no_kernel
    mine, other = agree([ASKS, ASKS], [Chosen(S8), narrow])
    assert mine.narrow is other.narrow is None
    with pytest.raises(UnsupportedError, match="w4a8 and u4b8"):
        agree([FOLDED, ASKS], [narrow, narrow])


def test_folding_twice_is_folding_once() -> None:
    assert fold_format("m", ASKS) == fold_format("m", FOLDED) == FOLDED
    assert fold_format("m", EXACT) == EXACT


def test_what_load_takes_is_read() -> None:
    assert [read_narrow(asked) for asked in (False, True, "folded")] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    for wrong in ("fold", None, 1):
        with pytest.raises(InputError, match="True, False or 'folded'"):
            read_narrow(wrong)
