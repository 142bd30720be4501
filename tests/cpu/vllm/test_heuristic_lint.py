"""The analysis of rule lists is exact: it says what trying every size says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import pytest
from cpu.vllm.rules import LARGEST, rule_lists
from hypothesis import given, settings

from billhook.cli import main
from billhook.vllm.heuristic import Rule, choose
from billhook.vllm.heuristic_lint import Finding, Grid, lint
from billhook.vllm.rule_file import load_rules, parse_rules, parse_tiling

EVERY_SIZE = list(product(range(1, LARGEST + 1), repeat=3))


def rules_of(*lines: str) -> list[Rule]:
    """Rules from lines such as `M > 5 -> 128x16_1x1x1`; without a condition, from the tiling alone."""
    text = ""
    for line in lines:
        condition, _, tiling = line.rpartition(" -> ")
        text += "[[rule]]\n" + (f'when = "{condition}"\n' if condition else "") + f'use = "{tiling}"\n'
    return parse_rules(text, "rules.toml")


def codes(findings: list[Finding]) -> list[tuple[str, int]]:
    return [(finding.code, finding.rule) for finding in findings]


@settings(max_examples=60)
@given(rules=rule_lists())
def test_dead_rules_and_gaps_are_those_that_trying_every_size_finds(rules: list[Rule]) -> None:
    winners = [choose(rules, *sizes) for sizes in EVERY_SIZE]
    alive = {id(rule) for rule in winners}
    found = lint(rules)
    dead = {
        finding.rule for finding in found if finding.code in ("unreachable", "contradiction", "duplicate")
    }
    assert dead == {number for number, rule in enumerate(rules, 1) if id(rule) not in alive}
    assert any(finding.code == "gap" for finding in found) == (None in winners)
    contradictions = {finding.rule for finding in found if finding.code == "contradiction"}
    for number in contradictions:
        assert not any(rules[number - 1].holds(*sizes) for sizes in EVERY_SIZE)


@settings(max_examples=60)
@given(rules=rule_lists())
def test_each_cell_of_the_grid_has_one_winner(rules: list[Rule]) -> None:
    grid = Grid(rules)
    starts = [[start for start in grid.starts[name] if start <= LARGEST] for name in "MNK"]
    for sizes in EVERY_SIZE:
        placed = zip(starts, sizes, strict=True)
        cell = tuple(sum(start <= size for start in axis) - 1 for axis, size in placed)
        winner = grid.winners[cell]
        assert choose(rules, *sizes) is (None if winner is None else rules[winner])


def test_the_gaps_of_a_list_are_named_once_and_cover_all() -> None:
    found = lint(rules_of("M > 64 && K <= 4096 -> 128x64_1x1x1", "N >= 8192 && M <= 64 -> 128x16_1x1x1"))
    gaps = [finding.message for finding in found if finding.code == "gap"]
    assert gaps == [
        "no rule holds for M 1..64, N 1..8191, any K (for one, M=1 N=1 K=1)",
        "no rule holds for M >= 65, any N, K >= 4097 (for one, M=65 N=1 K=4097)",
    ]


def test_dead_rules_are_told_apart() -> None:
    found = lint(
        rules_of(
            "M > 64 -> 128x64_1x1x1",
            "M > 128 -> 128x128_1x1x1",
            "M > 64 -> 128x32_1x1x1",
            "K > 10 && K < 9 -> 256x16_1x1x1",
            "128x16_1x1x1",
            "N > 5 -> 128x16_1x1x1",
        )
    )
    assert codes(found)[:4] == [
        ("unreachable", 2),
        ("duplicate", 3),
        ("contradiction", 4),
        ("unreachable", 6),
    ]
    assert "rule 1 takes all it would match" in found[0].message
    assert "same condition as rule 1 (which chooses 128x64_1x1x1)" in found[1].message
    assert "rule 1, 5 takes" in found[3].message
    unused = [finding.message.split()[0] for finding in found if finding.code == "unused-schedule"]
    assert unused == ["128x128_1x1x1", "128x32_1x1x1", "256x16_1x1x1"]


def test_a_compiled_schedule_that_no_rule_names_is_found() -> None:
    found = lint(rules_of("128x16_1x1x1"), [parse_tiling("128x16_1x1x1"), parse_tiling("256x16_1x1x1")])
    assert [finding.message for finding in found] == ["256x16_1x1x1 is compiled but never chosen"]


def test_the_slips_in_the_published_rules_are_found_where_they_stand() -> None:
    found = lint(load_rules())
    assert codes(found) == [("suspicious-constant", number) for number in (6, 6, 7)]
    assert all(finding.severity == "warning" for finding in found)
    assert found[0].message == (
        "`K <= 4069`: 4069 looks like a slip for 4096; with 4096, M 65..128, N 1..4069, K 4070..4096 "
        "would take 128x32_2x1x1 instead of 128x128_2x1x1"
    )


@pytest.mark.parametrize(
    ("condition", "meant"),
    [
        ("K <= 4069", 4096),
        ("K <= 16348", 16384),
        ("N >= 8129", 8192),
        ("N < 2084", 2048),
        ("K > 4906", 4096),
        ("N <= 1204", 1024),
        ("M > 126", 128),
        ("K <= 4096", None),
        ("K < 4097", None),
        ("K >= 8193", None),
        ("N >= 26624", None),
        ("K <= 12288", None),
        ("M > 48", None),
        ("M >= 257", None),
        ("M > 100", None),
    ],
)
def test_constants_that_look_like_slips(condition: str, meant: int | None) -> None:
    found = [one for one in lint(rules_of(f"{condition} -> 128x64_1x1x1", "128x16_1x1x1")) if one.rule]
    if meant is None:
        assert not found
    else:
        assert [one.code for one in found] == ["suspicious-constant"]
        assert f"looks like a slip for {meant};" in found[0].message


def test_a_constant_beside_another_of_the_same_list_is_a_slip_for_it() -> None:
    found = lint(rules_of("K <= 12299 -> 128x64_1x1x1", "K <= 12288 -> 128x32_1x1x1", "128x16_1x1x1"))
    assert ("suspicious-constant", 1) in codes(found)


def test_the_command_prints_findings_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "heuristic"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("machete_rules.toml:26:24: warning: rule 6: `K <= 4069`")
    assert lines[-1] == "machete_rules.toml: 16 rules, 3 findings"


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nwhen = "M > 64"\nuse = "128x64_1x1x1"\n')
    assert main(["lint", "heuristic", str(file), "--json"]) == 1
    answer = msgspec.json.decode(capsys.readouterr().out)
    assert (answer["file"], answer["rules"]) == (str(file), 1)
    assert [(one["code"], one["severity"]) for one in answer["findings"]] == [("gap", "error")]


def test_the_command_is_content_with_sound_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nwhen = "M > 64"\nuse = "128x64_1x1x1"\n[[rule]]\nuse = "128x16_1x1x1"\n')
    assert main(["lint", "heuristic", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 2 rules, 0 findings\n"
