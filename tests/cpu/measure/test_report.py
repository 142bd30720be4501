import pytest
from cpu.measure.made_records import make_case, make_record

from billhook.measure.report import render
from billhook.measure.rows import geomean, group


def test_ratio_is_against_the_fastest_peer_on_the_same_weights() -> None:
    (rows,) = group(
        [
            make_record("ours", 9.0),
            make_record("torch", 4.0),  # bf16 weights: no peer
            make_record("read", 3.0),
            make_record("marlin", 10.0),
            make_record("humming", 6.0),
            make_record("machete"),
        ]
    ).values()
    assert rows[0].best_peer == ("humming", 6.0)
    assert rows[0].ratio() == 1.5
    assert rows[0].ratio("marlin") == 0.9
    assert rows[0].ratio("machete") is None


def test_runs_are_never_mixed() -> None:
    runs = group([make_record("ours", 9.0, run="a"), make_record("marlin", 3.0, run="b")])
    assert [row.ratio() for rows in runs.values() for row in rows] == [None, None]
    assert list(runs) == ["a", "b"]


def test_the_last_record_of_a_contestant_counts() -> None:
    (rows,) = group([make_record("ours", 9.0), make_record("ours", 8.0)]).values()
    assert rows[0].median("ours") == 8.0


def test_geometric_mean() -> None:
    assert geomean([1.0, 4.0]) == pytest.approx(2.0)
    assert geomean([]) is None


def test_table_shows_floors_times_ratios_and_reasons() -> None:
    small, big = make_case(1), make_case(256)
    text = render(
        [
            make_record("ours", 10.0, small),
            make_record("marlin", 8.0, small),
            make_record("machete", case=small),
            make_record("ours", 20.0, big),
            make_record("marlin", 25.0, big),
            make_record("machete", 10.0, big),
        ]
    )
    lines = text.splitlines()
    assert lines[3].split() == ["problem", "floor", "ours", "marlin", "machete", "best", "peer", "ours/best"]
    assert lines[4].split() == ["dense4096", "m=1", "3.0", "10.0", "8.0", "-", "marlin", "1.25"]
    assert lines[5].split() == ["dense4096", "m=256", "3.0", "20.0", "25.0", "10.0", "machete", "2.00"]
    summary = [line.split() for line in lines]
    assert ["dense,", "ours/best", "peer", "1.581", "2.00", "2"] in summary
    assert ["dense,", "ours/marlin", "1.000", "1.25", "2"] in summary
    assert "skipped: machete: not installed: set X [dense4096 m=1]" in text


def test_fixed_tiles_show_the_fastest() -> None:
    (rows,) = group([make_record("ours:m8n128k256s4", 9.0), make_record("ours:m16n128k256s4", 8.0)]).values()
    assert rows[0].best_tile == ("m16n128k256s4", 8.0)
    text = render([make_record("ours", 10.0), make_record("ours:m8n128k256s4", 9.0)])
    assert text.splitlines()[4].split()[-2:] == ["m8n128k256s4", "9.0"]


def test_columns_line_up() -> None:
    lines = render([make_record("ours", 1.0), make_record("marlin", 12345.6)]).splitlines()
    assert len({len(line) for line in lines[3:5]}) == 1


def test_a_peer_absent_everywhere_is_told_once() -> None:
    records = [make_record("humming", case=make_case(m)) for m in (1, 2)]
    text = render([*records, make_record("ours", 1.0, make_case(1)), make_record("ours", 1.0, make_case(2))])
    assert text.count("not installed") == 1
    assert "[everywhere]" in text
