import pytest
from cpu.measure.made_records import make_case, make_record

from billhook.measure import by_format
from billhook.measure.report import render
from billhook.measure.rows import group


def tables(records: list) -> list[list[str]]:
    (rows,) = group(records).values()
    return [line.split() for line in by_format.render(rows)]


def test_one_format_needs_no_table() -> None:
    assert tables([make_record("ours", 9.0, make_case(m)) for m in (1, 16, 1024)]) == []


def test_times_are_compared_by_the_bytes_of_weights() -> None:
    # u8: 1 + (2 + 1) / 128 bytes a weight, u4b8: 0.5 + 2 / 128. In 1.5 times the time.
    lines = tables(
        [
            make_record("ours", 10.0, make_case(1)),
            make_record("ours", 15.0, make_case(1, weights="u8")),
            make_record("ours", 99.0, make_case(8, weights="u8")),  # u4b8 was not measured there
            make_record("ours", 99.0, make_case(64)),
            make_record("ours", 99.0, make_case(64, weights="u8")),
        ]
    )
    ratio = 1.5 * (0.5 + 2 / 128) / (1 + 3 / 128)
    assert ["dense4096", "m=1", "bf16", "x", "u8", "g128", "15.0", "17.17", f"{ratio:.2f}"] in lines
    assert ["bf16", "x", "u8", "g128", f"{ratio:.3f}", f"{ratio:.2f}", "1"] in lines
    assert sum(line[:1] == ["dense4096"] for line in lines) == 2


def test_activations_of_another_type_are_compared_with_their_own() -> None:
    lines = tables(
        [
            make_record("ours", 10.0, make_case(1)),
            make_record("ours", 20.0, make_case(1, act="f16")),
            make_record("ours", 20.0, make_case(1, weights="nvfp4", act="f16")),
        ]
    )
    (nvfp4,) = (line for line in lines if line[:1] == ["dense4096"] and "nvfp4" in line)
    assert float(nvfp4[-1]) == pytest.approx((0.5 + 2 / 128) / (0.5 + 1 / 16), abs=0.005)


def test_narrow_activations_are_compared_with_bf16() -> None:
    records = [make_record("ours", 9.0 * m, make_case(m)) for m in (1, 1024, 4096)]
    records += [
        make_record("ours", us, make_case(m, act="s8"))
        for m, us in ((1, 9.0), (1024, 4608.0), (4096, 24576.0))
    ]
    lines = tables([*records, make_record("ours", case=make_case(2048, act="s8"))])
    assert ["dense4096", "m=1024", "s8", "x", "u4b8", "channel", "4608.0", "9216.0", "2.00"] in lines
    assert ["s8", "x", "u4b8", "channel", f"{3**0.5:.3f}", "1.50", "2"] in lines  # of 1024 and 4096 tokens


def test_the_report_names_formats_and_keeps_their_means_apart() -> None:
    formats = ("u4b8", "mxfp4")
    text = render(
        [
            make_record(name, us, make_case(1, weights=weights))
            for weights in formats
            for name, us in (("ours", 9.0), ("marlin", 10.0 if weights == "u4b8" else 18.0))
        ]
    )
    lines = [line.split() for line in text.splitlines()]
    assert ["dense,", "ours/marlin", "0.900", "0.90", "1"] in lines
    assert ["dense", "bf16", "x", "mxfp4:32,", "ours/marlin", "0.500", "0.50", "1"] in lines
    assert any(line[:5] == ["dense4096", "bf16", "x", "mxfp4:32", "m=1"] for line in lines)
