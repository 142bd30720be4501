"""Element types as numpy knows them."""

import pytest

from billhook.dtypes import BF16, F16, F32, U4B8
from billhook.errors import InputError
from billhook.formats.elements import Rounding, numpy_dtype, rounding


def test_the_numbers_of_a_type_are_those_of_its_definition() -> None:
    assert rounding(F16) == Rounding(2.0**-11, 2.0**-25, 65504.0)
    assert rounding(BF16).unit == 2.0**-8
    assert rounding(F32).unit == 2.0**-24
    with pytest.raises(InputError, match="u4b8"):
        numpy_dtype(U4B8)
