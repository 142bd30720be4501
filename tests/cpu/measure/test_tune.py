import msgspec
import pytest
from cpu.measure.made_records import make_case, make_record

from billhook.catalog import Rule
from billhook.measure.tune import choose, exceptions, losses, render_rules

SMALL, BIG = "m8n128k256s4", "m64n256k128s4"


def tile_records(times: dict[int, tuple[float, float]], **case: int | str) -> list:
    return [
        make_record(f"ours:{tile}", median, make_case(tokens, **case))
        for tokens, medians in times.items()
        for tile, median in zip((SMALL, BIG), medians, strict=True)
    ]


def test_the_tile_that_costs_least_over_all_shapes_wins() -> None:
    # On one shape BIG is a little faster, on the other much slower.
    records = tile_records({16: (10.0, 9.0)}) + tile_records({16: (10.0, 20.0)}, n=8192)
    (choice,) = choose(records)
    assert choice.tile == "m8n128k256"
    assert choice.last is None


def test_depths_of_a_tile_are_one_and_what_else_a_name_says_is_not() -> None:
    names = ("machete-grouped-m256n128k64s4", "machete-grouped-m256n128k64s5", "machete-m256n128k64s5c2")
    times = (9.0, 8.0, 7.0)
    records = [
        make_record(f"ours:{name}", time, make_case(16)) for name, time in zip(names, times, strict=True)
    ]
    assert [choice.tile for choice in choose(records)] == ["machete-m256n128k64c2"]
    assert [choice.tile for choice in choose(records[:2])] == ["machete-grouped-m256n128k64"]
    turns = make_record("ours:machete-m64n128k64s4c2p", 6.0, make_case(16))
    assert [choice.tile for choice in choose([*records, turns])] == ["machete-m64n128k64c2p"]


def test_neighbours_merge_and_ranges_leave_no_gap() -> None:
    records = tile_records({1: (5.0, 9.0), 8: (5.0, 9.0), 64: (30.0, 20.0), 128: (60.0, 30.0)})
    small, big = choose(records)
    assert (small.above, small.last, small.tile) == (0.0, 8, "m8n128k256")
    assert (big.above, big.last, big.tile) == (8, None, "m64n256k128")


def test_a_tie_makes_no_switch_point() -> None:
    records = tile_records({1: (5.0, 9.0), 8: (5.02, 5.0)})
    assert [choice.tile for choice in choose(records)] == ["m8n128k256"]


def test_moe_is_ranged_by_rows_per_expert() -> None:
    records = tile_records({4: (5.0, 9.0), 1024: (90.0, 50.0)}, experts=8, top_k=2)
    first, second = choose(records)
    assert first.moe
    assert first.last == 1.0  # 4 tokens x 2 / 8 experts
    assert second.above == 1.0


def test_other_contestants_and_failures_are_ignored() -> None:
    assert choose([make_record("ours", 9.0), make_record("marlin", 1.0), make_record(f"ours:{SMALL}")]) == []


def test_loss_is_over_the_best_tile_of_each_shape() -> None:
    found = losses({(1, 1, ""): {"a": 2.0, "b": 1.0}, (2, 2, ""): {"a": 1.0, "b": 1.0, "c": 0.5}})
    assert found == pytest.approx({"a": 2.0, "b": 2.0**0.5}, rel=1e-12)  # "c" was not measured everywhere


def test_exceptions_name_shape_and_gain() -> None:
    records = tile_records({16: (10.0, 9.0)}) + tile_records({16: (10.0, 20.0)}, n=8192)
    (line,) = exceptions(records)
    assert line == "# dense n=4096 k=4096 rows=16: m64n256k128 beats m8n128k256 by 11%"


def test_rules_are_what_the_catalog_reads() -> None:
    records = tile_records({8: (5.0, 9.0), 64: (30.0, 20.0)}) + tile_records(
        {64: (9.0, 8.0)}, experts=8, top_k=2
    )
    rules = msgspec.convert(msgspec.toml.decode(render_rules(choose(records)))["rules"], list[Rule])
    assert [(rule.moe, rule.rows.above, rule.rows.max, rule.tile) for rule in rules] == [
        (False, 0, 8, "m8n128k256"),
        (False, 8, float("inf"), "m64n256k128"),
        (True, 0, float("inf"), "m64n256k128"),
    ]


def test_types_of_activations_have_rules_of_their_own_if_several_were_measured() -> None:
    records = tile_records({8: (5.0, 9.0)}) + tile_records({8: (9.0, 5.0)}, act="e4m3fn")
    records += tile_records({16: (9.0, 5.0)}) + tile_records({16: (9.0, 5.0)}, act="e4m3fn")
    wide, last, narrow = choose(records)
    assert [(one.activations, one.last, one.tile) for one in (wide, last, narrow)] == [
        ("bf16", 8, "m8n128k256"),
        ("bf16", None, "m64n256k128"),
        ("e4m3fn", None, "m64n256k128"),
    ]
    text = render_rules([wide, last, narrow])
    rules = msgspec.convert(msgspec.toml.decode(text)["rules"], list[Rule])
    assert [rule.activations for rule in rules] == [("bf16",), ("bf16",), ("e4m3fn",)]
    assert "activations" not in render_rules([wide, last])
    assert exceptions(records) == []
