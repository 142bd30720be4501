"""The Machete family's legality: each limit is enforced and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billhook import families
from billhook.arch import parse
from billhook.config import GemmTypes, KernelConfig, Problem, Tile, parse_name
from billhook.dtypes import BF16, E4M3FN, F16, F32, S8, U4, U4B8, U8B128, DType
from billhook.families import machete

TYPES = GemmTypes(BF16, U4B8, BF16, BF16)
LEGAL = KernelConfig("machete", TYPES, 128, Tile(64, 128, 128, 4), indexed=False, arch=parse("9.0a"))


def test_the_example_is_legal_and_rounds_group_scaled_weights() -> None:
    assert families.illegal(LEGAL) is None
    assert families.rounds_weights(LEGAL)
    assert not families.rounds_weights(replace(LEGAL, group_size=-1))
    assert families.threads(LEGAL) == 384  # two consumers and a producer
    assert families.threads(replace(LEGAL, tile=Tile(48, 256, 128, 4))) == 640
    assert families.threads(replace(LEGAL, tile=Tile(64, 256, 128, 4))) == 384
    assert families.boxes(LEGAL) == (64,)
    assert families.boxes(replace(LEGAL, indexed=True)) == ()


def test_grouped_rows_are_fetched_as_those_of_dense_layers() -> None:
    grouped = replace(LEGAL, tile=Tile(64, 128, 128, 4, 2), indexed=True, grouped=True)
    assert families.illegal(grouped) is None  # clusters share them
    assert families.boxes(grouped) == (32,)
    assert families.boxes(replace(LEGAL, tile=Tile(256, 128, 64, 4))) == (256, 128)  # of half a tile, too
    assert families.boxes(replace(LEGAL, tile=Tile(256, 128, 64, 2))) == (256,)  # one of its stages fits
    assert families.boxes(replace(LEGAL, tile=Tile(256, 128, 64, 4, 2))) == (128, 64)  # of a CTA of two
    looked_up = replace(grouped, grouped=False)
    table = looked_up.tile.tile_m * 4  # of the rows that are looked up
    assert families.shared_memory(looked_up) == families.shared_memory(grouped) + table


def test_warpgroups_in_turns_are_two_that_hold_all_sums_of_a_tile() -> None:
    turns = replace(LEGAL, tile=Tile(48, 256, 128, 4, pingpong=True))
    assert families.illegal(turns) is None
    assert parse_name(turns.name) == turns
    assert "m48n256k128s4p_dense" in turns.name
    assert families.threads(turns) == 384
    together = replace(turns, tile=Tile(48, 256, 128, 4))
    assert machete.sums(turns) == 96 == 4 * machete.sums(together)
    for legal in (
        replace(turns, tile=replace(turns.tile, cluster=2)),
        replace(turns, indexed=True),
        replace(turns, indexed=True, grouped=True),
        replace(turns, types=GemmTypes(S8, U4B8, F16, F16), group_size=-1),
    ):
        assert families.illegal(legal) is None


@pytest.mark.parametrize(
    ("tile", "room"),
    [(Tile(112, 128, 64, 4), 96), (Tile(80, 192, 64, 4), 64), (Tile(64, 256, 64, 4), 48)],
    ids=str,
)
def test_how_many_tokens_a_warpgroup_has_registers_for_alone_is_told(tile: Tile, room: int) -> None:
    turns = replace(LEGAL, tile=replace(tile, pingpong=True))
    assert f"at most {room} with tile_n {tile.tile_n}, computed alone" in str(families.illegal(turns))
    assert families.illegal(replace(turns, tile=replace(turns.tile, tile_m=room))) is None
    assert families.illegal(replace(turns, tile=tile)) is None


@pytest.mark.parametrize(
    ("tile", "room"), [(Tile(144, 192, 64, 4), 128), (Tile(160, 256, 64, 4), 144)], ids=str
)
def test_how_many_tokens_warpgroups_have_registers_for_together_is_told(tile: Tile, room: int) -> None:
    together = replace(LEGAL, tile=tile)
    assert f"at most {room} with tile_n {tile.tile_n}, computed together" in str(families.illegal(together))
    assert families.illegal(replace(together, tile=replace(tile, tile_m=room))) is None


def stage_bytes(config: KernelConfig) -> int:
    deeper = replace(config, tile=replace(config.tile, stages=config.tile.stages + 1))
    return families.shared_memory(deeper) - families.shared_memory(config)


@pytest.mark.parametrize("activations", [E4M3FN, S8])
@pytest.mark.parametrize("out", [F16, BF16])
@pytest.mark.parametrize("tile", [Tile(64, 128, 256, 5), Tile(128, 128, 256, 4), Tile(256, 128, 128, 4)])
def test_activations_of_8_bits_multiply_u4b8_weights_with_channel_scales(
    activations: DType, out: DType, tile: Tile
) -> None:
    types = GemmTypes(activations, U4B8, out, out)
    dense = replace(LEGAL, types=types, group_size=-1, tile=tile)
    assert families.illegal(dense) is None
    assert parse_name(dense.name) == dense
    assert families.illegal(replace(dense, indexed=True, grouped=True)) is None
    assert not families.rounds_weights(dense)
    wide = replace(dense, types=TYPES)
    assert stage_bytes(wide) - stage_bytes(dense) == tile.tile_m * tile.tile_k


@pytest.mark.parametrize(("activations", "weights"), [(E4M3FN, E4M3FN), (S8, U8B128)], ids=str)
def test_activations_of_8_bits_multiply_weights_of_8_bits(activations: DType, weights: DType) -> None:
    types = GemmTypes(activations, weights, BF16, BF16)
    dense = replace(LEGAL, types=types, group_size=-1, tile=Tile(256, 128, 128, 3))
    assert families.illegal(dense) is None
    assert families.illegal(replace(dense, indexed=True, grouped=True)) is None
    assert families.illegal(replace(dense, group_size=128, tile=Tile(96, 128, 128, 4))) is None
    assert not families.rounds_weights(dense)
    halved = replace(dense, types=GemmTypes(activations, U4B8, BF16, BF16))
    assert stage_bytes(dense) - stage_bytes(halved) == 128 * 128 // 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"types": GemmTypes(E4M3FN, U4, BF16, BF16)}, "weights of u4b8, u8b128, e4m3fn (got u4)"),
        ({"types": GemmTypes(E4M3FN, U8B128, BF16, BF16)}, "to be exact in e4m3fn (got u8b128)"),
        ({"types": GemmTypes(S8, E4M3FN, BF16, BF16)}, "to be exact in s8 (got e4m3fn)"),
        ({"types": GemmTypes(S8, U4B8, BF16, S8)}, "f16 or bf16"),
        ({"types": GemmTypes(S8, U4B8, F16, BF16)}, "must be bf16 (got f16)"),
        ({"types": GemmTypes(F32, U4B8, F16, F16)}, "got f32"),
        ({"group_size": 64}, "its group"),
        ({"group_size": 128, "tile": Tile(112, 128, 256, 4)}, "96 tokens"),
        ({"group_size": 128, "tile": Tile(32, 128, 256, 4, pingpong=True)}, "computed together"),
        ({"tile": Tile(256, 128, 64, 5)}, "multiple of 128"),
        ({"indexed": True}, "grouped"),
    ],
)
def test_each_limit_of_8_bit_activations_is_named(change: dict[str, object], word: str) -> None:
    narrow = replace(LEGAL, types=GemmTypes(E4M3FN, U4B8, BF16, BF16), group_size=-1)
    why = families.illegal(replace(narrow, **change))
    assert why is not None
    assert word in why


@pytest.mark.parametrize("out", [F16, BF16], ids=str)
@pytest.mark.parametrize("tile", [Tile(16, 128, 256, 4), Tile(128, 128, 256, 4), Tile(256, 128, 128, 4)])
def test_folded_scales_leave_tiles_as_large_as_those_of_channels(out: DType, tile: Tile) -> None:
    types = GemmTypes(E4M3FN, U4B8, E4M3FN, out)
    dense = replace(LEGAL, types=types, group_size=128, tile=tile)
    assert families.illegal(dense) is None
    assert parse_name(dense.name) == dense
    assert families.illegal(replace(dense, indexed=True, grouped=True)) is None
    assert not families.rounds_weights(dense)
    for change, word in (
        ({"types": GemmTypes(out, U4B8, E4M3FN, out)}, "e4m3fn activations alone"),
        ({"types": GemmTypes(S8, U4B8, E4M3FN, out)}, f"must be {out} (got e4m3fn)"),
        ({"group_size": -1}, "(128,)"),
        ({"arch": parse("10.0a")}, "9.0a"),
    ):
        assert word in str(families.illegal(replace(dense, **change)))


def test_sums_of_s8_stay_within_32_bits() -> None:
    types = GemmTypes(S8, U4B8, BF16, BF16)
    config = replace(LEGAL, types=types, group_size=-1)
    assert families.unserved(config, Problem(1, 64, (1 << 17) - 16, types, -1)) is None
    assert "32 bits" in (families.unserved(config, Problem(1, 64, 1 << 17, types, -1)) or "")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arch": parse("9.0")}, "9.0a"),
        ({"arch": parse("10.0a")}, "9.0a"),
        ({"types": GemmTypes(E4M3FN, U4B8, BF16, BF16), "group_size": 64}, "e4m3fn"),
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
