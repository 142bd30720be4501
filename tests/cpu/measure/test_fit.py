import re
from collections.abc import Sequence

import msgspec
import pytest
from cpu.measure.made_records import make_case, make_record

from billhook.arch import parse
from billhook.catalog import TileTimes
from billhook.measure.fit import FEWEST_PROBLEMS, fit, render_times
from billhook.measure.ours import parse_tile
from billhook.measure.record import Case, Record

WIDE, NARROW, HALVED = "machete-m128n128k128s4", "machete-m64n128k256s4", "machete-m256n128k64s5"
SIZES = [(4096, 4096), (28672, 4096), (2048, 8192)]
COUNTS = (17, 64, 100, 300, 900)
KNOWN = {
    WIDE: TileTimes("machete-m128n128k128", 16, 2.5, 0.0055, 0.75),
    NARROW: TileTimes("machete-m64n128k256", 16, 1.5, 0.0035, 0.5),
    HALVED: TileTimes("machete-m256n128k64", 16, 3.0, 0.0105, 0.25),
}


def made(tile: str, case: Case, times: TileTimes | None = None, factor: float = 1.0) -> Record:
    """Return what a tile of known times would have been measured at."""
    shape, _ = parse_tile(tile)
    problem = case.problem
    kernel = shape.kernel(problem.types, problem.group_size, problem.moe, parse("9.0a"))
    us = (times or KNOWN[tile]).predict(kernel, case.m, case.n, case.k)
    return make_record(f"ours:{tile}", us * factor, case)


def cases(**more: str) -> list[Case]:
    return [make_case(m, n=n, k=k, **more) for n, k in SIZES for m in COUNTS]


def sweep(tiles: Sequence[str] = tuple(KNOWN)) -> list[Record]:
    return [made(tile, case) for case in cases() for tile in tiles]


def test_the_times_that_records_were_made_of_come_back() -> None:
    fits, (loss,) = fit(sweep())
    assert [one.tile for one in fits] == [KNOWN[tile].tile for tile in (NARROW, WIDE, HALVED)]
    for one, known in zip(fits, (KNOWN[tile] for tile in (NARROW, WIDE, HALVED)), strict=True):
        assert one.times is not None
        assert msgspec.structs.astuple(one.times)[2:5] == pytest.approx(
            (known.launch, known.column, known.wave), rel=1e-4
        )
        assert one.worst < 1e-4
        assert one.rms <= one.worst
    assert (loss.problems, loss.mean, loss.worst) == (15, 0, 0)


def test_errors_are_relative_and_told() -> None:
    records = sweep([WIDE])
    slow = [made(WIDE, records[-1].case, factor=1.2), *records[:-1]]
    (found,), losses = fit(slow)
    assert 0.01 < found.rms < found.worst < 0.2
    assert losses == []  # of one tile there is nothing to choose


def test_the_multiprocessors_are_those_of_the_record() -> None:
    records = [
        msgspec.structs.replace(one, machine=msgspec.structs.replace(one.machine, sms=66))
        for one in sweep([WIDE])
    ]
    (found,), _ = fit(records)
    assert found.worst > 0.01  # made for 132


def test_only_dense_problems_of_tiles_whose_work_is_known_count() -> None:
    records = sweep([WIDE])
    others = [
        make_record("ours", 9.0),
        make_record("ours:m16n128k256s4", 9.0),
        make_record(f"ours:{WIDE}"),
        make_record("ours:machete-grouped-m128n128k128s4", 9.0, make_case(100, experts=8, top_k=2)),
    ]
    (found,), _ = fit([*others, *records])
    assert (found.tile, found.problems) == ("machete-m128n128k128", len(records))
    assert found.worst < 1e-4


def test_a_depth_that_is_slower_does_not_count() -> None:
    shallow = WIDE.replace("s4", "s3")
    records = [made(shallow, one, KNOWN[WIDE], factor=1.5) for one in cases()]
    (found,), _ = fit([*records, *sweep([WIDE]), *records])
    assert found.worst < 1e-4


def test_bits_of_activations_are_told_apart() -> None:
    narrow = msgspec.structs.replace(KNOWN[WIDE], activations=8, column=0.003)
    folded = [made(WIDE, one, narrow) for one in cases(weights="w4a8", act="e4m3fn")]
    fits, _ = fit([*folded, *sweep([WIDE])])
    found = [(one.activations, one.times and one.times.column) for one in fits]
    assert found == [(16, pytest.approx(0.0055, rel=1e-4)), (8, pytest.approx(0.003, rel=1e-4))]


def test_bits_of_weights_are_told_apart() -> None:
    wide = msgspec.structs.replace(KNOWN[WIDE], column=0.009)
    eight = [made(WIDE, one, wide) for one in cases(weights="u8b128")]
    fits, _ = fit([*eight, *sweep([WIDE])])
    found = [(one.weights, one.times and one.times.weights, one.times and one.times.column) for one in fits]
    assert found == [(4, None, pytest.approx(0.0055, rel=1e-4)), (8, 8, pytest.approx(0.009, rel=1e-4))]
    assert "activations = 16\nweights = 8\n" in render_times(fits, [])


def test_too_few_or_alike_problems_are_named_and_left_out() -> None:
    alike = [make_case(m, n=132 * 128) for m in range(65, 65 + FEWEST_PROBLEMS)]  # of one tile each
    for records in (sweep([WIDE])[: FEWEST_PROBLEMS - 1], [made(WIDE, case) for case in alike]):
        (found,), losses = fit(records)
        assert found.times is None
        text = render_times([found], losses)
        assert text.startswith("# machete-m128n128k128 under 16-bit activations, 4-bit weights: left out")
        assert f"{len(records)} problems" in text
        assert "[[times]]" not in text


def test_a_column_that_would_take_no_time_is_left_out() -> None:
    falling = msgspec.structs.replace(KNOWN[WIDE], launch=2000.0, column=-0.005)
    (found,), _ = fit([made(WIDE, case, falling) for case in cases()])
    assert found.times is None


def test_the_loss_is_that_of_the_tile_with_the_least_predicted_time() -> None:
    records = sweep([WIDE, NARROW])
    slowed = records[0].case
    kept = [one for one in records if one.case != slowed]
    named = min(
        (one for one in records if one.case == slowed), key=lambda one: one.times.median_us
    ).contestant
    odd = [one for one in records if one.case == slowed and one.contestant != named]
    odd += [made(named.removeprefix("ours:"), slowed, factor=3.0)]
    _, (loss,) = fit([*kept, *odd])
    assert loss.case == slowed
    assert loss.problems == 15
    assert loss.chosen == parse_tile(named.removeprefix("ours:"))[0].name
    assert loss.worst == pytest.approx(odd[-1].times.median_us / odd[0].times.median_us - 1)
    assert loss.mean == pytest.approx(loss.worst / 15)


def test_times_are_what_the_catalog_reads() -> None:
    records = sweep()
    fits, losses = fit(records)
    text = render_times(fits, losses)
    found = msgspec.convert(msgspec.toml.decode(text)["times"], list[TileTimes])
    assert found == [one.times for one in fits]
    assert re.search(r"^# 15 problems, error 0\.0% rms, 0\.0% at most\n\[\[times\]\]$", text, re.M)
    assert (
        "# 16-bit activations, 4-bit weights, choosing by these times: 0.00% slower than the best tile"
        in text
    )


def test_problems_on_which_another_tile_is_much_faster_do_not_count() -> None:
    """Where a tile would not be taken anyway it may take any time."""
    bad = cases()[:4]
    slow = [made(WIDE, case, factor=2.0 if case in bad else 1.0) for case in cases()]
    fast = [make_record(f"ours:{NARROW}", one.times.median_us, one.case) for one in sweep([WIDE])]
    (_, found), _ = fit([*slow, *fast])
    assert (found.tile, found.problems) == ("machete-m128n128k128", len(cases()) - len(bad))
    assert found.worst < 1e-4


def test_no_part_of_a_time_is_below_nothing() -> None:
    """Else the smallest problems, which nobody measured, would seem to take none."""
    steep = msgspec.structs.replace(KNOWN[WIDE], launch=-4.0)
    (found,), _ = fit([made(WIDE, case, steep) for case in cases() if case.m > 200 or case.n > 5000])
    assert found.times is not None
    assert found.times.launch == 0
    assert found.times.column > 0
    assert 0.01 < found.rms < 0.1
