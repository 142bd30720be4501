"""Routing on the host: what the GPU kernel must answer too."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from billhook.dispatch.routing import capacity, route


@given(
    ids=st.lists(st.integers(-2, 9), max_size=80),
    experts=st.integers(1, 8),
    block_m=st.sampled_from([1, 8, 16, 48, 64]),
)
def test_every_row_of_an_expert_appears_once_in_its_blocks(
    ids: list[int], experts: int, block_m: int
) -> None:
    token_ids, expert_ids, length = route(ids, experts, block_m)
    assert length == len(token_ids) == len(expert_ids) * block_m
    assert len(expert_ids) <= capacity(len(ids), experts, block_m)
    assert (np.diff(expert_ids) >= 0).all()
    for expert in range(experts):
        mine = token_ids.reshape(-1, block_m)[expert_ids == expert].reshape(-1)
        real = mine[mine < len(ids)]
        assert real.tolist() == [row for row, one in enumerate(ids) if one == expert]
        assert (mine[len(real) :] == len(ids)).all()
        assert len(mine) - len(real) < block_m


def test_the_capacity_is_reached() -> None:
    """One row over a block for every expert: no routing needs more blocks."""
    experts, block_m = 4, 8
    ids = [expert for expert in range(experts) for _ in range(block_m + 1)]
    assert len(route(ids, experts, block_m)[1]) == capacity(len(ids), experts, block_m) == 8
