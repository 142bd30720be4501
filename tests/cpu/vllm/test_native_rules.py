"""The documented heuristic, and files like it, as rules of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cpu.vllm.machete_table import GRID, published_choice

from billhook import catalog
from billhook.arch import parse
from billhook.cli import main
from billhook.config import Problem, parse_types
from billhook.errors import ConfigError, InputError
from billhook.select import select
from billhook.vllm.machete.native import find_catalog
from billhook.vllm.machete.schedules import ARCH

DENSE = Problem(1, 4096, 4096, parse_types("bf16_u4b8_bf16_bf16"), 128)
MODEL = str(Path(__file__).parents[3] / "examples/models/llama-3.1-8b-gptq-int4")
RULES = """
[[rule]]
when = "M >= 64 && M < 128 && N == 4096"
use = "128x32_2x1x1"

[[rule]]
when = "M > 9 && M < 10"
use = "128x16_1x1x1"

[[rule]]
use = "128x64_1x1x1"
"""


def test_the_documented_heuristic_chooses_as_published_around_every_constant() -> None:
    documented = find_catalog("machete-0.20")
    wrong = []
    for m, n, k in GRID:
        problem = replace(DENSE, m=m, n=n, k=k)
        rule = next(one for one in documented.rules if one.matches(problem, ARCH.capability))
        tile = documented.by_name[rule.tile].tile
        got = f"{tile.tile_n}x{tile.tile_m}_{tile.cluster}x1x1"
        if got != published_choice(m, n, k):
            wrong.append(((m, n, k), got))
    assert not wrong


def test_elsewhere_our_own_rules_choose() -> None:
    documented, own = find_catalog("machete-0.33"), find_catalog("native")
    assert own is catalog.load()
    moe = replace(DENSE, num_experts=8, top_k=2)
    for m in (1, 16, 40, 300, 4000):
        for problem, arch in ((moe, "9.0a"), (DENSE, "8.0"), (moe, "8.0")):
            asked = replace(problem, m=m)
            assert select(asked, parse(arch), documented).config == select(asked, parse(arch), own).config


def test_a_file_of_rules_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RULES)
    mine = find_catalog(file)
    tiles = [
        select(replace(DENSE, m=m, n=n), ARCH, mine).config.tile
        for m, n in ((63, 4096), (64, 4096), (127, 4096), (128, 4096), (64, 4112), (10, 4096))
    ]
    assert [(tile.tile_m, tile.cluster) for tile in tiles] == [
        (64, 1),
        (32, 2),
        (32, 2),
        (64, 1),
        (64, 1),
        (64, 1),
    ]


def test_a_reason_names_the_rule_by_its_own_file_and_number(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RULES)
    mine, moe = find_catalog(file), replace(DENSE, num_experts=8, top_k=2)
    chosen = select(DENSE, ARCH, mine)
    assert chosen.reason.startswith("mine.toml rule 3 (dense, arch 9.0)")
    assert select(moe, ARCH, mine).reason == select(moe, ARCH).reason
    others = {one.config.tile.tile_m: one.why_not for one in chosen.rejected if one.config.tile.cluster == 2}
    assert others[32].startswith("could serve; named only by rule 1 (dense, 63 < rows <= 127")
    assert any("named only by rules/native.toml rule " in one.why_not for one in chosen.rejected)


def test_rules_may_ask_for_pingpong(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RULES.replace("128x64_1x1x1", "128x96_1x1x1_pingpong"))
    mine = find_catalog(file)
    few, many = (select(replace(DENSE, m=m), ARCH, mine).config for m in (64, 200))
    assert not few.tile.pingpong
    assert (many.tile.tile_m, many.tile.pingpong) == (96, True)
    assert many.name.endswith("p_dense_sm90a")


def test_what_makes_no_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"known releases: 0\.16"):
        find_catalog("machete-0.1")
    with pytest.raises(InputError, match=r"a file \(got elsewhere\)"):
        find_catalog("elsewhere")
    file = tmp_path / "mine.toml"
    file.write_text('[[rule]]\nwhen = "M != 3"\nuse = "128x64_1x1x1"\n')
    with pytest.raises(ConfigError, match="M != 3 is no interval"):
        find_catalog(file)
    file.write_text('[[rule]]\nuse = "128x64_1x2x1"\n')
    with pytest.raises(ConfigError, match="clusters along the first mode alone"):
        find_catalog(str(file))
    for wrong, words in (
        ("256x256_1x1x1", "schedule 256x256_1x1x1 has no kernel: tile_m must be at most 144"),
        ("128x112_1x1x1_pingpong", "pingpong has no kernel: tile_m must be at most 96 .* alone"),
        ("128x128_8x1x1", "has no kernel: cluster must be 1, 2 or 4"),
    ):
        file.write_text(f'[[rule]]\nuse = "{wrong}"\n')
        with pytest.raises(ConfigError, match=words):
            find_catalog(str(file))


def test_plans_take_rules_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", MODEL, "--max-tokens", "16"]
    assert main([*command, "--rules", "machete-0.20"]) == 0
    text = capsys.readouterr().out
    assert "machete_f16_u4b8" in text
    assert "machete-0.20 rule " in text
    assert main(command) == 0
    assert "machete-0.20" not in capsys.readouterr().out
    assert main([*command, "--rules", "nothing"]) == 2
    assert "rules are native" in capsys.readouterr().err
