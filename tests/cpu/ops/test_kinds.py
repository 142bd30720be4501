"""What operators ask of dispatch is what the format's kernels are made for."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from billhook.dispatch.provider import Request
from billhook.ops.kinds import KINDS, Kind


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: str(kind.types))
def test_the_names_of_a_kind_are_those_of_its_types(kind: Kind) -> None:
    assert Request(0, 1, 64, 64, *kind.names, group_size=-1).types == kind.types
