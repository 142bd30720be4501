"""Rule files are read with the place of everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from billhook.cli import main
from billhook.errors import ConfigError
from billhook.vllm.heuristic import Tiling
from billhook.vllm.rule_file import load_rules, parse_rules
from billhook.vllm.toml_positions import Position, entries

SOUND = '[[rule]]\nwhen = "M > 64"\nuse = "128x64_2x1x1"\n'


def test_reads_conditions_tilings_and_places() -> None:
    first, last = parse_rules(f"# a comment\n{SOUND}\n[[rule]]\nuse = '256x16_1x1x1'\n", "rules.toml")
    assert (str(first), first.line, first.column) == ("M > 64 -> 128x64_2x1x1", 3, 9)
    assert (str(last), last.line) == ("otherwise -> 256x16_1x1x1", 6)
    assert first.tiling == Tiling((128, 64), (2, 1, 1))
    (turns,) = parse_rules('[[rule]]\nuse = "128x96_1x1x1_pingpong"\n', "rules.toml")
    assert str(turns) == "otherwise -> 128x96_1x1x1_pingpong"
    assert turns.tiling == Tiling((128, 96), (1, 1, 1), pingpong=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules.toml: holds no [[rule]]"),
        ("rule = 5\n", "rules.toml: write each rule as a [[rule]] table of its own"),
        ("rule = [{ use = '128x16_1x1x1' }]\n", "rules.toml: write each rule as a [[rule]] table of its own"),
        ("tile = 4\n" + SOUND, "rules.toml: unknown key 'tile'; a rule file holds [[rule]] tables only"),
        (SOUND + "[[rule]]\n", 'rules.toml:4:1: the rule says no `use`; write use = "128x128_2x1x1"'),
        (SOUND + "[[rule]]\nuse = 128\n", "rules.toml:5:7: `use` must be a string (got 128)"),
        (SOUND + 'then = "x"\n', "rules.toml:4:8: unknown key 'then'; a rule has `when` and `use`"),
        (
            '[[rule]]\nwhen = "M > 64 && X > 1"\nuse = "128x64_2x1x1"\n',
            "rules.toml:2:19: unknown variable 'X'; a condition compares M, N or K",
        ),
        (
            '[[rule]]\nuse = "128x64"\n',
            "rules.toml:2:7: '128x64' is no schedule; write tile and cluster like 128x256_2x1x1",
        ),
        (
            '[[rule]]\nuse = "128x64_1x1x1_coop"\n',
            "rules.toml:2:7: '128x64_1x1x1_coop' is no schedule; write tile and cluster like 128x256_2x1x1",
        ),
        (
            '[[rule]]\nuse = "64x64_1x1x1"\n',
            "rules.toml:2:7: '64x64_1x1x1': the tile's first number must be 128 or 256 (got 64)",
        ),
        (
            '[[rule]]\nuse = "128x100_1x1x1"\n',
            "rules.toml:2:7: '128x100_1x1x1': the tile's second number must be 8, 16, ... 256 (got 100)",
        ),
        (
            '[[rule]]\nuse = "128x64_1x1x2"\n',
            "rules.toml:2:7: '128x64_1x1x2': the cluster's third number must be 1 (got 2)",
        ),
        (
            '[[rule]]\nuse = "128x64_3x1x1"\n',
            "rules.toml:2:7: '128x64_3x1x1': a cluster holds 1, 2, 4 or 8 CTAs",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(text, "rules.toml")
    assert str(caught.value) == message


def test_a_file_that_is_no_toml_is_refused_at_the_line() -> None:
    with pytest.raises(ConfigError, match=r"rules\.toml:3:\d+: "):
        parse_rules('[[rule]]\nuse = "128x64_2x1x1"\nwhen = M > 4\n', "rules.toml")


def test_strings_and_comments_do_not_mislead_the_scanner() -> None:
    text = (
        '# [[rule]] when = "no"\n'
        "[[rule]]\n"
        "note = '''\n[[rule]]\nwhen = 1\n'''\n"
        'use = "a \\" when = 2" # when = 3\n'
        "[other]\nwhen = 4\n"
        "  [[ rule ]]\n"
        "when=5\n"
    )
    first, second = entries(text, "rule")
    assert first.start == Position(2, 1)
    assert first.keys == {"note": Position(3, 8), "use": Position(7, 7)}
    assert second.start == Position(10, 3)
    assert second.keys == {"when": Position(11, 6)}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rules(tmp_path / "missing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_rules(tmp_path / "binary.toml")


def test_the_command_line_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nwhen = "M >"\nuse = "128x64_2x1x1"\n')
    assert main(["lint", "heuristic", str(file)]) == 2
    assert capsys.readouterr().err == f"billhook: error: {file}:2:12: expected a whole number at the end\n"
    out = tmp_path / "out"
    arguments = ["--target", "vllm-0.33", "--family", "machete", "--out", str(out), "--heuristic", str(file)]
    assert main(["generate", *arguments]) == 2
    assert not list(out.glob("*")) if out.exists() else True
