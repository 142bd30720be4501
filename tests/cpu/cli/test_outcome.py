from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cpu.build.stand_in import artifacts, small_plan

from billhook.build import Outcome, Resources
from billhook.cli import outcome as shown
from billhook.errors import CompileError

PLAN = small_plan()


def made(**failures: CompileError) -> Outcome:
    return Outcome(artifacts(PLAN), failures, None)


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shown, "get_terminal_size", lambda: os.terminal_size((columns, 24)))


def test_a_file_gets_one_line_per_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    shown.print_outcome(made(), PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(made().artifacts)
    assert lines[0].split() == ["kernel", *" ".join(shown._HEADINGS).split()]
    for line, artifact in zip(lines[1:], made().artifacts, strict=True):
        assert line.startswith(artifact.unit.name)


@pytest.mark.parametrize(("columns", "lines_each"), [(80, 2), (200, 1)])
def test_a_narrow_terminal_gets_two(
    columns: int, lines_each: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch, columns)
    shown.print_outcome(made(), PLAN)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == lines_each * (1 + len(made().artifacts))


def test_spills_and_warnings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = artifacts(PLAN)
    spilling = {first.unit.name: Resources(255, 0, 40, 16, 24)}
    warned = replace(first, entries=spilling, warnings=["(C7510) serialised"])
    shown.print_outcome(Outcome([warned, *rest], {}, None), PLAN)
    said = capsys.readouterr().err
    assert f"{first.unit.name}: (C7510) serialised" in said
    assert "each thread stores 16 and loads 24 bytes" in said


def test_a_long_log_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    log = "\n".join(f"error {number}" for number in range(100))
    shown.print_outcome(made(bad=CompileError("bad did not compile", log)), PLAN)
    said = capsys.readouterr().err
    assert "error 0\n" in said
    assert "error 99" not in said
    assert "and 60 more lines on bad" in said


def test_layers_are_named_with_their_model_where_there_are_several(tmp_path: Path) -> None:
    other = replace(PLAN.layers[0], model="other")
    both = replace(PLAN, layers=(*PLAN.layers, other))
    ids = {layer.id for layer in PLAN.layers}
    assert not any(one in "\n".join(shown._table(made(), PLAN)) for one in ids)
    assert all(one in "\n".join(shown._table(made(), both)) for one in ids)
