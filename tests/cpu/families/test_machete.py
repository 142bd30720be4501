"""The Machete family's legality: each limit is enforced and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billhook import families
from billhook.arch import parse
from billhook.config import GemmTypes, KernelConfig, Tile
from billhook.dtypes import BF16, E4M3FN, U4B8

TYPES = GemmTypes(BF16, U4B8, BF16, BF16)
LEGAL = KernelConfig("machete", TYPES, 128, Tile(64, 128, 128, 4), indexed=False, arch=parse("9.0a"))


def test_the_example_is_legal_and_rounds_group_scaled_weights() -> None:
    assert families.illegal(LEGAL) is None
    assert families.rounds_weights(LEGAL)
    assert not families.rounds_weights(replace(LEGAL, group_size=-1))
    assert families.threads(LEGAL) == 384  # two consumers and a producer
    assert families.threads(replace(LEGAL, tile=Tile(64, 256, 128, 4))) == 640
    assert families.takes_tensor_map(LEGAL)
    assert not families.takes_tensor_map(replace(LEGAL, indexed=True))


def test_grouped_rows_are_fetched_as_those_of_dense_layers() -> None:
    grouped = replace(LEGAL, tile=Tile(64, 128, 128, 4, 2), indexed=True, grouped=True)
    assert families.illegal(grouped) is None  # clusters share them
    assert families.takes_tensor_map(grouped)
    looked_up = replace(grouped, grouped=False)
    assert families.shared_memory(grouped) == families.shared_memory(looked_up)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arch": parse("9.0")}, "9.0a"),
        ({"arch": parse("10.0a")}, "9.0a"),
        ({"types": GemmTypes(E4M3FN, U4B8, BF16, BF16)}, "e4m3fn"),
        ({"group_size": 256}, "256"),
        ({"tile": Tile(264, 128, 128, 4)}, "264"),
        ({"tile": Tile(24, 128, 128, 4)}, "16 (got 24)"),
        ({"tile": Tile(64, 128, 192, 4)}, "192"),  # neither divides nor covers a group of 128
        ({"tile": Tile(64, 64, 128, 4)}, "64"),
        ({"tile": Tile(64, 384, 128, 4)}, "384"),
        ({"tile": Tile(64, 128, 128, 1)}, "stages"),
        ({"tile": Tile(256, 256, 128, 3)}, "256"),
        ({"tile": Tile(128, 256, 128, 5)}, "shared memory"),
        ({"tile": Tile(64, 128, 128, 4, 3)}, "cluster"),
        ({"tile": Tile(16, 128, 128, 4, 4)}, "cluster"),
        ({"tile": Tile(64, 128, 128, 4, 2), "indexed": True}, "MoE"),
        ({"grouped": True}, "MoE"),
    ],
)
def test_each_limit_is_named(change: dict[str, object], word: str) -> None:
    why = families.illegal(replace(LEGAL, **change))
    assert why is not None
    assert word in why
