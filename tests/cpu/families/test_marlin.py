"""The Marlin family's legality: each limit is enforced and named, and resources follow the tile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billhook import families
from billhook.arch import parse
from billhook.config import GemmTypes, KernelConfig, Problem, Tile
from billhook.dtypes import BF16, E2M1F, E4M3FN, E8M0FNU, F16, F32, S8, U4, U4B8, U8, U8B128, DType
from billhook.families.base import weight_bytes_per_stage
from billhook.weights import FORMATS, PackedFormat

TYPES = GemmTypes(BF16, U4B8, BF16, BF16)
LEGAL = KernelConfig("marlin", TYPES, 128, Tile(16, 128, 256, 4), indexed=False, arch=parse("9.0a"))
PROBLEM = Problem(m=1, n=2880, k=2880, types=TYPES, group_size=128)


def test_the_example_is_legal() -> None:
    assert families.illegal(LEGAL) is None
    assert families.unserved(LEGAL, PROBLEM) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"family": "scythe"}, "scythe"),
        ({"arch": parse("7.5")}, "7.5"),
        ({"types": GemmTypes(F32, U4B8, F32, F32)}, "f32"),
        ({"types": GemmTypes(BF16, S8, BF16, BF16)}, "s8"),
        ({"types": GemmTypes(S8, U8, BF16, BF16)}, "weights of u4b8, u4, u8b128, e4m3fn, e2m1f (got u8)"),
        ({"types": GemmTypes(S8, E4M3FN, BF16, BF16)}, "must be of u4b8, u4, u8b128 to be exact in s8"),
        ({"types": GemmTypes(E4M3FN, U8B128, BF16, BF16)}, "u4b8, u4, e4m3fn, e2m1f to be exact in e4m3fn"),
        ({"types": GemmTypes(E4M3FN, E2M1F, E8M0FNU, F16), "group_size": 32}, "must be bf16 with e8m0fnu"),
        ({"types": GemmTypes(S8, U4B8, BF16, S8)}, "f16 or bf16"),
        ({"types": GemmTypes(E4M3FN, U4B8, BF16, BF16), "arch": parse("8.6")}, "8.9 or later (got 8.6)"),
        ({"arch": parse("7.5"), "tile": Tile(16, 128, 128, 2)}, "bf16 needs compute capability 8.0"),
        (
            {"arch": parse("7.5"), "types": GemmTypes(S8, U4B8, BF16, BF16), "tile": Tile(16, 128, 128, 2)},
            "the output must be f16 (got 7.5)",
        ),
        ({"arch": parse("7.5"), "types": GemmTypes(F16, U4B8, F16, F16)}, "stages must be 2 on 7.5"),
        (
            {"arch": parse("7.5"), "types": GemmTypes(F16, U4B8, F16, F16), "tile": Tile(16, 128, 256, 2)},
            "a CTA on 7.5 has 65536",
        ),
        ({"types": GemmTypes(F16, E2M1F, E8M0FNU, F16)}, "e4m3fn (got e8m0fnu)"),
        ({"types": GemmTypes(BF16, E2M1F, BF16, BF16)}, "e8m0fnu, e4m3fn (got bf16)"),
        ({"types": GemmTypes(BF16, E4M3FN, BF16, BF16), "group_size": 32}, "(-1, 128) for e4m3fn"),
        ({"types": GemmTypes(BF16, E2M1F, E4M3FN, BF16), "group_size": 32}, "(16,) for e2m1f"),
        ({"types": GemmTypes(BF16, U4B8, F16, BF16)}, "f16"),
        ({"types": GemmTypes(BF16, U4B8, BF16, F16)}, "f16"),
        ({"group_size": 16}, "16"),
        ({"tile": Tile(20, 128, 256, 4)}, "20"),
        ({"tile": Tile(16, 96, 256, 4)}, "96"),
        ({"tile": Tile(16, 128, 100, 4)}, "100"),
        ({"tile": Tile(16, 128, 64, 4)}, "128"),  # a group of 128 does not fit a stage of 64
        ({"tile": Tile(16, 512, 512, 2)}, "64"),  # warps
        ({"tile": Tile(16, 128, 256, 1)}, "1"),
        ({"tile": Tile(64, 256, 256, 8)}, "shared memory"),
        ({"tile": Tile(64, 128, 256, 2), "arch": parse("8.6")}, "8.6"),
        ({"tile": Tile(16, 128, 256, 3, cluster=2)}, "cluster"),
        ({"tile": Tile(16, 128, 256, 3, pingpong=True)}, "pingpong"),
    ],
)
def test_each_limit_is_named(change: dict[str, object], word: str) -> None:
    why = families.illegal(replace(LEGAL, **change))
    assert why is not None
    assert word in why


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"m": 0}, "m must"),
        ({"n": 100}, "100"),
        ({"n": 0}, "n must"),
        ({"k": 24}, "24"),
        ({"types": GemmTypes(F16, U4B8, F16, F16)}, "f16"),
        ({"group_size": 64}, "64"),
        ({"num_experts": 8, "top_k": 2}, "dense"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, object], word: str) -> None:
    why = families.unserved(LEGAL, replace(PROBLEM, **change))
    assert why is not None
    assert word in why


def test_a_moe_kernel_serves_no_dense_layer() -> None:
    assert "MoE" in str(families.unserved(replace(LEGAL, indexed=True), PROBLEM))


def test_shared_memory_grows_with_the_tile_and_depth() -> None:
    base = families.shared_memory(LEGAL)
    for tile in (Tile(32, 128, 256, 4), Tile(16, 256, 256, 4), Tile(16, 128, 512, 4), Tile(16, 128, 256, 5)):
        assert families.shared_memory(replace(LEGAL, tile=tile)) > base
    assert families.shared_memory(replace(LEGAL, group_size=-1)) < base
    assert families.shared_memory(replace(LEGAL, group_size=32)) > base


@pytest.mark.parametrize("one", FORMATS.values(), ids=lambda one: one.name)
def test_every_format_is_legal_with_each_of_its_groups_and_activations(one: PackedFormat) -> None:
    for a in one.activations:
        for group_size in one.group_sizes:
            types = GemmTypes(a, one.weight, one.scale or a, a)
            config = replace(LEGAL, types=types, group_size=group_size, tile=Tile(16, 128, 256, 3))
            assert families.illegal(config) is None


@pytest.mark.parametrize("one", FORMATS.values(), ids=lambda one: one.name)
def test_every_format_is_legal_with_its_8_bit_activations(one: PackedFormat) -> None:
    for a in one.narrow_activations:
        for c in one.activations:
            for group_size in one.group_sizes:
                types = GemmTypes(a, one.weight, one.scale_type(c), c)
                config = replace(LEGAL, types=types, group_size=group_size, tile=Tile(16, 128, 256, 3))
                assert families.illegal(config) is None
                assert not families.rounds_weights(config)


@pytest.mark.parametrize("arch", ["8.0", "8.9", "9.0a", "12.0"])
def test_folded_scales_are_refused_with_what_to_use_instead(arch: str) -> None:
    types = GemmTypes(E4M3FN, U4B8, E4M3FN, F16)
    why = families.illegal(replace(LEGAL, types=types, arch=parse(arch)))
    assert why is not None
    assert "9.0a does, with machete" in why and "u4b8, whose scales have the type f16" in why


def test_sums_of_s8_may_be_of_any_length_in_groups() -> None:
    types = GemmTypes(S8, U4B8, BF16, BF16)
    for group_size, served in ((-1, False), (128, True)):
        config = replace(LEGAL, types=types, group_size=group_size)
        assert (families.unserved(config, Problem(1, 64, 1 << 17, types, group_size)) is None) is served


def test_kernels_for_7_5_copy_through_registers_in_two_stages() -> None:
    for a in (F16, S8):
        config = replace(
            LEGAL, types=GemmTypes(a, U4B8, F16, F16), arch=parse("7.5"), tile=Tile(16, 128, 128, 2)
        )
        assert families.illegal(config) is None


def test_activations_of_8_bits_take_half_the_room() -> None:
    narrow = replace(LEGAL, types=GemmTypes(S8, U4B8, BF16, BF16))
    tile = LEGAL.tile
    saved = tile.stages * tile.tile_m * tile.tile_k
    assert families.shared_memory(LEGAL) - families.shared_memory(narrow) == saved


def test_codes_scales_and_zero_points_take_the_room_of_their_types() -> None:
    def weights(group_size: int, *types: DType) -> int:
        return weight_bytes_per_stage(replace(LEGAL, types=GemmTypes(*types), group_size=group_size))

    codes = 128 * 256 // 2  # bytes of 4-bit codes; 128 scales for each group
    assert weights(128, BF16, U4B8, BF16, BF16) == codes + 128 * 2 * 2
    assert weights(128, BF16, U4, BF16, BF16) == codes + 128 * 2 * 4
    assert weights(-1, BF16, U4, BF16, BF16) == codes + 128 * 2
    assert weights(-1, S8, U4, BF16, BF16) == codes + 128 * 2
    assert weights(-1, BF16, U8B128, BF16, BF16) == 2 * codes
    assert weights(16, BF16, E2M1F, E4M3FN, BF16) == codes + 128 * 16


def test_exact_products_are_not_said_to_be_rounded() -> None:
    tile = Tile(64, 128, 256, 2)
    for types, group_size, rounds in (
        (GemmTypes(BF16, U4B8, BF16, BF16), 128, True),
        (GemmTypes(BF16, E4M3FN, E8M0FNU, BF16), 32, True),  # below bf16's smallest subnormal
        (GemmTypes(BF16, E2M1F, E8M0FNU, BF16), 32, False),
        (GemmTypes(F16, E2M1F, E4M3FN, F16), 16, False),
    ):
        config = replace(LEGAL, types=types, group_size=group_size, tile=tile)
        assert families.rounds_weights(config) is rounds


def test_workspace_holds_two_tiles_for_each_cta() -> None:
    assert families.workspace(LEGAL, 132) == 2 * 132 * 16 * 128 * 4
