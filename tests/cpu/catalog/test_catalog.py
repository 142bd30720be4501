"""The installed catalog is sound, and a wrong one is refused with file, line and value."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import billhook.catalog
from billhook.arch import parse, supported
from billhook.catalog import deepest, load, tile_name
from billhook.config import KernelConfig, Tile
from billhook.errors import ConfigError
from billhook.families import illegal

INSTALLED = Path(billhook.catalog.__file__).parent


def folder_with(tmp_path: Path, *, family: str | None = None, rules: str | None = None) -> Path:
    """Return a folder with the installed files, one of them replaced."""
    (tmp_path / "rules").mkdir()
    for name, text in (("marlin.toml", family), ("rules/marlin.toml", rules)):
        shutil.copy(INSTALLED / name, tmp_path / name)
        if text is not None:
            (tmp_path / name).write_text(text)
    return tmp_path


def test_installed_catalog_loads_once() -> None:
    catalog = load()
    assert catalog is load()
    assert catalog.family == "marlin"
    assert len(catalog.by_name) == len(catalog.tiles)


def test_every_tile_and_format_is_legal_somewhere() -> None:
    catalog = load()
    archs = [parse(text) for text in supported()]
    for tile in catalog.tiles:
        for one in catalog.formats:
            for types in one.types():
                for group_size in one.group_sizes:
                    configs = [KernelConfig("marlin", types, group_size, tile, False, arch) for arch in archs]
                    assert any(deepest(config)[1] is None for config in configs), tile


def test_deepest_takes_what_fits() -> None:
    types = load().formats[0].types()[0]
    for arch in ("8.0", "8.6", "9.0a"):
        for tile in load().tiles:
            asked = KernelConfig("marlin", types, 128, tile, False, parse(arch))
            config, why = deepest(asked)
            if why is None:
                assert illegal(config) is None
                deeper = Tile(tile.tile_m, tile.tile_n, tile.tile_k, config.tile.stages + 1)
                asked_deeper = KernelConfig("marlin", types, 128, deeper, False, parse(arch))
                assert config.tile.stages == tile.stages or illegal(asked_deeper) is not None
            else:
                assert "shared memory" in why
                assert config.tile.stages == 2


def test_deepest_tells_what_no_depth_changes_of_the_asked_config() -> None:
    types = load().formats[0].types()[0]
    asked = KernelConfig("marlin", types, 128, Tile(24, 128, 256, 4), False, parse("8.0"))
    assert deepest(asked) == (asked, illegal(asked))


FORMATS = '[[formats]]\nweight = "u4b8"\nactivations = ["f16"]\ngroup_sizes = [128]\n'
TILES = "[[tiles]]\nm = [8, 64]\nn = 128\nk = 128\nstages = 4\n"
FAMILY = f'family = "marlin"\n{FORMATS}{TILES}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("family = \n", ["marlin.toml", "TOML", "line 1"]),
        (FAMILY.replace('"marlin"', '"machete"'), ["family", "machete"]),
        (f'family = "marlin"\n{FORMATS}', ["tiles"]),
        (f'family = "marlin"\ntiles = []\n{FORMATS}', ["no tile"]),
        (f'family = "marlin"\nformats = []\n{TILES}', ["no format"]),
        (FAMILY.replace('"u4b8"', '"u5"'), ["marlin.toml:2", "u5"]),
        (FAMILY.replace("n = 128", 'n = "128"'), ["marlin.toml:6", "int"]),
        (FAMILY.replace("n = 128", "n = 128\nwidth = 3"), ["marlin.toml:6", "width"]),
        (FAMILY.replace("n = 128", "n = 100"), ["m8n100k128", "multiples of 64", "100"]),
        (FAMILY + TILES, ["marlin.toml:11", "m8n128k128", "twice"]),
    ],
)
def test_wrong_family_file(tmp_path: Path, text: str, words: list[str]) -> None:
    folder = folder_with(tmp_path, family=text, rules='[[rules]]\ntile = "m8n128k128"\n')
    with pytest.raises(ConfigError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def test_the_small_family_file_is_right(tmp_path: Path) -> None:
    catalog = load(folder_with(tmp_path, family=FAMILY, rules='[[rules]]\ntile = "m8n128k128"\n'))
    assert [tile_name(tile) for tile in catalog.tiles] == ["m8n128k128", "m64n128k128"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rules]]\ntile = 3\n", ["rules/marlin.toml:1", "str"]),
        ("", ["rules"]),
        ("rules = []", ["holds no rule"]),
        ('[[rules]]\ntile = "m9n128k128"\n', [":1", "rule 1", "m9n128k128", "m8n128k128"]),
        ('[[rules]]\nrow = 3\ntile = "m8n128k128"\n', [":1", "row"]),
        ('[[rules]]\nrows = { max = 0 }\ntile = "m8n128k128"\n', [":1", "rows", "max = 0"]),
        ('[[rules]]\nn = { above = 9, max = 8 }\ntile = "m8n128k128"\n', [":1", "above = 9"]),
        ('[[rules]]\narch = ["7.0"]\ntile = "m8n128k128"\n', [":1", "7.0"]),
        ('[[rules]]\narch = ["9.0a"]\ntile = "m8n128k128"\n', [":1", "9.0a", "9.0"]),
        ('[[rules]]\ntile = "m8n128k128"\n\n[[rules]]\ntile = "m64n128k128"\n', [":4", "rule 2", "never"]),
        ('[[rules]]\nrows = { max = 8 }\ntile = "m8n128k128"\n', ["no rule serves", "rows > 8"]),
        ('[[rules]]\nmoe = true\ntile = "m8n128k128"\n', ["no rule serves", "dense"]),
        ('[[rules]]\narch = ["9.0"]\ntile = "m8n128k128"\n', ["no rule serves", "8.0"]),
    ],
)  # fmt: skip
def test_wrong_rules(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder_with(tmp_path, family=FAMILY, rules=text))
    for word in words:
        assert word in str(caught.value)


def test_a_rule_after_one_whose_tile_is_not_legal_everywhere_is_its_fallback(tmp_path: Path) -> None:
    big = "[[tiles]]\nm = [64]\nn = 256\nk = 256\nstages = 3\n"
    fallback = '[[rules]]\ntile = "m64n128k128"\n'
    load(folder_with(tmp_path, family=FAMILY + big, rules='[[rules]]\ntile = "m64n256k256"\n' + fallback))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"marlin\.toml"):
        load(tmp_path)
