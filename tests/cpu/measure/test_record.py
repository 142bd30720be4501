import json
from pathlib import Path

import pytest
from cpu.measure.made_records import make_case, make_record
from hypothesis import given
from hypothesis import strategies as st

from billhook.errors import ConfigError, InputError, StorageError
from billhook.measure.record import Record, append, read

medians = st.one_of(st.none(), st.floats(min_value=0.1, max_value=1e6))


@given(st.lists(st.tuples(st.sampled_from(["ours", "marlin"]), medians), min_size=1, max_size=5))
def test_records_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("records") / "deep" / "run.jsonl"
    records = [make_record(name, median) for name, median in rows]
    append(path, records[:1])
    append(path, records[1:])
    assert list(read([path])) == records


def test_every_line_says_its_schema_problem_and_floor(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    append(path, [make_record("ours", 9.0, make_case(experts=8, top_k=2))])
    line = json.loads(path.read_text())
    assert line["case"]["num_experts"] == 8
    assert line["times"]["median_us"] == 9.0
    assert line["floor_us"] == 3.0
    assert line["schema"] == 1
    assert "skipped" not in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not a measurement record"),
        (b"[]", "not a measurement record"),
        (b'{"run": "\xff"}', "not a measurement record"),
        (b'{"run": 1}', "run"),
    ],
)
def test_damaged_line_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "run.jsonl"
    append(path, [make_record("ours", 9.0)])
    path.write_bytes(path.read_bytes() + b"\n" + text + b"\n")
    with pytest.raises(ConfigError, match=rf"run\.jsonl:3: .*{words}"):
        list(read([path]))


def test_other_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    append(path, [make_record("ours", 9.0)])
    line = json.loads(path.read_text()) | {"schema": 99}
    path.write_text(json.dumps(line))
    with pytest.raises(ConfigError, match=r"run\.jsonl:1: .*99.*schema"):
        list(read([path]))


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: cannot be read"):
        list(read([tmp_path / "none.jsonl"]))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(InputError, match="no measurement record"):
        list(read([empty]))


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StorageError, match="--out"):
        append(blocker / "run.jsonl", [make_record("ours", 9.0)])


def test_a_record_has_times_or_a_reason() -> None:
    with pytest.raises(ValueError, match="either times or a reason"):
        make_record("ours", 9.0, skipped="why")
    with pytest.raises(ValueError, match="either times or a reason"):
        Record("r", "d", make_record("o", 1.0).machine, make_case(), "ours", 1.0, 1, 1, 1.0, 1.0)
