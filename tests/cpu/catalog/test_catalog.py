"""The installed catalog is sound, and a wrong one is refused with file, line and value."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import billhook.catalog
from billhook import weights
from billhook.arch import parse, supported
from billhook.catalog import Catalog, Format, Shape, deepest, load
from billhook.config import GemmTypes, KernelConfig, Problem, Tile
from billhook.dtypes import F16, U4B8, U8B128
from billhook.errors import ConfigError
from billhook.families import fewest_stages, illegal
from billhook.plan import Plan, plan_problems
from billhook.select import select

INSTALLED = Path(billhook.catalog.__file__).parent


def folder_with(tmp_path: Path, *, kernels: str | None = None, rules: str | None = None) -> Path:
    """Return a folder with the installed files, one of them replaced."""
    (tmp_path / "rules").mkdir()
    for name, text in (("native.toml", kernels), ("rules/native.toml", rules)):
        shutil.copy(INSTALLED / name, tmp_path / name)
        if text is not None:
            (tmp_path / name).write_text(text)
    return tmp_path


def wide_formats(catalog: Catalog) -> list[Format]:
    """Return the formats with 16-bit activations, which most tiles and rules are for."""
    return [one for one in catalog.formats if all(types.a.bits == 16 for types in one.types())]


def test_installed_catalog_loads_once() -> None:
    catalog = load()
    assert catalog is load()
    assert {shape.family for shape in catalog.shapes} == {"marlin", "machete"}
    assert len(catalog.by_name) == len(catalog.shapes)


def test_the_catalog_lists_every_format_of_weights() -> None:
    listed = {(types, size) for one in load().formats for types in one.types() for size in one.group_sizes}
    wide = {
        (GemmTypes(a, one.weight, one.scale_type(a), a), size)
        for one in weights.FORMATS.values()
        for a in one.activations
        for size in one.group_sizes
    }
    narrow = {
        (GemmTypes(a, one.weight, one.scale_type(c), c), size)
        for one in weights.FORMATS.values()
        for a in one.narrow_activations
        for c in one.outputs
        for size in one.group_sizes
    }
    assert listed == wide | narrow


def test_every_tile_and_format_is_legal_somewhere() -> None:
    catalog = load()
    archs = [parse(text) for text in (*supported(), "9.0a")]
    for shape in catalog.shapes:
        if shape.family == "machete":
            continue
        for one in wide_formats(catalog):
            for types in one.types():
                for group_size in one.group_sizes:
                    configs = [shape.kernel(types, group_size, False, arch) for arch in archs]
                    assert any(deepest(config)[1] is None for config in configs), shape


def test_deepest_takes_what_fits() -> None:
    types = load().formats[0].types()[0]
    for arch in ("8.0", "8.6", "9.0a"):
        for shape in load().shapes:
            asked = shape.kernel(types, 128, shape.grouped, parse(arch))
            config, why = deepest(asked)
            if why is None:
                assert illegal(config) is None
                deeper = replace(config, tile=replace(config.tile, stages=config.tile.stages + 1))
                assert config == asked or illegal(deeper) is not None
            elif shape.family == "machete" and arch != "9.0a":
                assert (config, "9.0a" in why) == (asked, True)
            else:
                assert "shared memory" in why
                assert config.tile.stages == fewest_stages(shape.family)


def test_deepest_tells_what_no_depth_changes_of_the_asked_config() -> None:
    types = load().formats[0].types()[0]
    asked = KernelConfig("marlin", types, 128, Tile(24, 128, 256, 4), False, parse("8.0"))
    assert deepest(asked) == (asked, illegal(asked))


FORMATS = '[[formats]]\nweight = "u4b8"\nactivations = ["f16"]\ngroup_sizes = [128]\n'
TILES = '[[tiles]]\nfamily = "marlin"\nm = [8, 64]\nn = 128\nk = 128\nstages = 4\n'
KERNELS = FORMATS + TILES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("formats = \n", ["native.toml", "TOML", "line 1"]),
        (KERNELS.replace('"marlin"', '"scythe"'), ["native.toml:5", "scythe", "machete"]),
        (FORMATS, ["tiles"]),
        ("tiles = []\n" + FORMATS, ["no tile"]),
        ("formats = []\n" + TILES, ["no format"]),
        (KERNELS.replace('"u4b8"', '"u5"'), ["native.toml:1", "u5"]),
        (KERNELS.replace("n = 128", 'n = "128"'), ["native.toml:5", "int"]),
        (KERNELS.replace("n = 128", "n = 128\nwidth = 3"), ["native.toml:5", "width"]),
        (KERNELS.replace("n = 128", "n = 100"), ["m8n100k128", "multiples of 64", "100"]),
        (KERNELS + TILES, ["native.toml:11", "m8n128k128", "twice"]),
    ],
)
def test_wrong_kernel_file(tmp_path: Path, text: str, words: list[str]) -> None:
    folder = folder_with(tmp_path, kernels=text, rules='[[rules]]\ntile = "m8n128k128"\n')
    with pytest.raises(ConfigError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def test_listed_formats_are_the_only_ones(tmp_path: Path) -> None:
    rules = '[[rules]]\ntile = "m8n128k128"\n'
    (only,) = load(folder_with(tmp_path, kernels=KERNELS, rules=rules)).formats
    assert (only.weight, only.activations, only.group_sizes) == ("u4b8", ("f16",), (128,))


def test_the_small_kernel_file_is_right(tmp_path: Path) -> None:
    catalog = load(folder_with(tmp_path, kernels=KERNELS, rules='[[rules]]\ntile = "m8n128k128"\n'))
    assert [shape.name for shape in catalog.shapes] == ["m8n128k128", "m64n128k128"]


GROUPED = '[[tiles]]\nfamily = "machete"\nm = [256]\nn = 128\nk = 64\nstages = 5\ngrouped = true\n'


def test_a_grouped_tile_has_a_name_of_its_own_and_serves_moe_layers_alone(tmp_path: Path) -> None:
    rest = '[[rules]]\ntile = "m8n128k128"\n'
    rule = '[[rules]]\narch = ["9.0"]\n{}tile = "machete-grouped-m256n128k64"\n' + rest
    right, wrong = (tmp_path / name for name in ("right", "wrong"))
    right.mkdir(), wrong.mkdir()
    catalog = load(folder_with(right, kernels=KERNELS + GROUPED, rules=rule.format("moe = true\n")))
    shape = catalog.by_name["machete-grouped-m256n128k64"]
    config = shape.kernel(catalog.formats[0].types()[0], 128, True, parse("9.0a"))
    assert (Shape.of(config), illegal(config)) == (shape, None)
    assert "MoE" in str(illegal(replace(config, indexed=False)))
    with pytest.raises(ConfigError, match="rule 1 names machete-grouped-m256n128k64 for dense layers"):
        load(folder_with(wrong, kernels=KERNELS + GROUPED, rules=rule.format("")))


PINGPONG = (
    '[[tiles]]\nfamily = "machete"\nm = [64, 96]\nn = 128\nk = 128\nstages = 4\npingpong = true\n',
    '[[tiles]]\nfamily = "machete"\nm = [64]\nn = 128\nk = 128\nstages = 5\ncluster = 2\npingpong = true\n'
    "grouped = true\n",
)


def test_a_tile_of_warpgroups_in_turns_has_a_name_of_its_own(tmp_path: Path) -> None:
    together = PINGPONG[0].replace("pingpong = true\n", "")
    rules = (
        '[[rules]]\narch = ["9.0"]\nmoe = true\ntile = "machete-grouped-m64n128k128c2p"\n'
        '[[rules]]\narch = ["9.0"]\nrows = { max = 100 }\ntile = "machete-m64n128k128"\n'
        '[[rules]]\narch = ["9.0"]\ntile = "machete-m96n128k128p"\n'
        '[[rules]]\ntile = "m8n128k128"\n'
    )
    catalog = load(folder_with(tmp_path, kernels=KERNELS + together + "".join(PINGPONG), rules=rules))
    types, target = catalog.formats[0].types()[0], parse("9.0a")
    dense, moe = Problem(1, 4096, 4096, types, 128), Problem(1, 4096, 4096, types, 128, 8, 2)
    chosen = {m: select(replace(dense, m=m), target, catalog) for m in (100, 101)}
    assert [one.config.tile for one in chosen.values()] == [
        Tile(64, 128, 128, 4),
        Tile(96, 128, 128, 4, pingpong=True),
    ]
    assert chosen[101].config.name == "machete_f16_u4b8_f16_f16_g128_m96n128k128s4p_dense_sm90a"
    assert "machete_f16_u4b8_f16_f16_g128_m64n128k128s4p_dense_sm90a" in {
        one.config.name for one in chosen[101].rejected
    }
    assert select(moe, target, catalog).config.tile == Tile(64, 128, 128, 5, 2, pingpong=True)
    plan = plan_problems([dense, moe], [target, parse("8.0")], 200, catalog)
    assert {kernel.name.partition("_g128_")[2] for kernel in plan.kernels} == {
        "m8n128k128s4_dense_sm80",
        "m8n128k128s4_moe_sm80",
        "m64n128k128s4_dense_sm90a",
        "m96n128k128s4p_dense_sm90a",
        "m64n128k128s5c2p_grouped_sm90a",
    }
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_marlin_has_no_warpgroups_to_take_turns(tmp_path: Path) -> None:
    kernels = KERNELS + TILES.replace("[8, 64]", "[16]") + "pingpong = true\n"
    with pytest.raises(ConfigError, match="tile m16n128k128p can exist nowhere: pingpong"):
        load(folder_with(tmp_path, kernels=kernels, rules='[[rules]]\ntile = "m8n128k128"\n'))


def test_every_moe_rule_has_tiles_for_every_format_on_its_target() -> None:
    catalog, arch = load(), parse("9.0a")
    for rule in catalog.rules:
        if not rule.moe or rule.arch != ("9.0",) or rule.activations == 8:
            continue
        for one in wide_formats(catalog):
            for types in one.types():
                for group_size in one.group_sizes:
                    (tile,) = rule.tiles
                    asked = catalog.by_name[tile].kernel(types, group_size, True, arch)
                    assert deepest(asked)[1] is None, asked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rules]]\ntile = 3\n", ["rules/native.toml:1", "str"]),
        ("", ["rules"]),
        ("rules = []", ["holds no rule"]),
        ('[[rules]]\ntile = "m9n128k128"\n', [":1", "rule 1", "m9n128k128", "m8n128k128"]),
        ('[[rules]]\nrow = 3\ntile = "m8n128k128"\n', [":1", "row"]),
        ('[[rules]]\nmoe = true\nn = { max = 64 }\ntile = "m8n128k128"\n', [":1", "routing", "moe = false"]),
        ('[[rules]]\nk = { above = 64 }\ntile = "m8n128k128"\n', [":1", "routing", "moe = false"]),
        ('[[rules]]\nexperts = { max = 8 }\ntile = "m8n128k128"\n', [":1", "experts", "moe = true"]),
        ('[[rules]]\nrows = { max = 0 }\ntile = "m8n128k128"\n', [":1", "rows", "max = 0"]),
        ('[[rules]]\nn = { above = 9, max = 8 }\ntile = "m8n128k128"\n', [":1", "above = 9"]),
        ('[[rules]]\nactivations = 8\ntile = "m8n128k128"\n', [":1", "8-bit", "there are f16"]),
        ('[[rules]]\nactivations = ["e5m2"]\ntile = "m8n128k128"\n', [":1", "'e5m2'", "there are f16"]),
        ('[[rules]]\nactivations = ["f16", "u4b8"]\ntile = "m8n128k128"\n', [":1", "'u4b8'", "are f16"]),
        ('[[rules]]\nactivations = []\ntile = "m8n128k128"\n', [":1", "lists no type", "for all"]),
        ('[[rules]]\nactivations = "f16"\ntile = "m8n128k128"\n', [":1", "activations", "str"]),
        ('[[rules]]\narch = ["7.0"]\ntile = "m8n128k128"\n', [":1", "7.0"]),
        ('[[rules]]\narch = ["9.0a"]\ntile = "m8n128k128"\n', [":1", "9.0a", "9.0"]),
        ('[[rules]]\ntile = "m8n128k128"\n\n[[rules]]\ntile = "m64n128k128"\n', [":4", "rule 2", "never"]),
        ('[[rules]]\nrows = { max = 8 }\ntile = "m8n128k128"\n', ["no rule serves", "rows > 8"]),
        ('[[rules]]\nmoe = true\ntile = "m8n128k128"\n', ["no rule serves", "dense"]),
        ('[[rules]]\narch = ["9.0"]\ntile = "m8n128k128"\n', ["no rule serves", "7.5"]),
    ],
)  # fmt: skip
def test_wrong_rules(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder_with(tmp_path, kernels=KERNELS, rules=text))
    for word in words:
        assert word in str(caught.value)


def test_a_rule_after_one_whose_tile_is_not_legal_everywhere_is_its_fallback(tmp_path: Path) -> None:
    big = '[[tiles]]\nfamily = "marlin"\nm = [64]\nn = 256\nk = 256\nstages = 3\n'
    fallback = '[[rules]]\ntile = "m64n128k128"\n'
    load(folder_with(tmp_path, kernels=KERNELS + big, rules='[[rules]]\ntile = "m64n256k256"\n' + fallback))


EXACT = '[[formats]]\nweight = "u4b8"\nactivations = ["e4m3fn"]\ngroup_sizes = [128]\noutputs = ["bf16"]\n'
FOLDED = EXACT + 'scales = "e4m3fn"\n'
NARROW = '[[tiles]]\nfamily = "machete"\nm = [64]\nn = 128\nk = 128\nstages = 4\n'
NARROW += NARROW + "grouped = true\n"


def test_rules_for_what_only_9_0a_has_come_after_those_of_others(tmp_path: Path) -> None:
    first = '[[rules]]\ntile = "m64n128k128"\n'
    dense = '[[rules]]\nmoe = false\ntile = "machete-m64n128k128"\n'
    rules = first + dense + '[[rules]]\nmoe = true\ntile = "machete-grouped-m64n128k128"\n'
    with_it, without, gap = (tmp_path / name for name in ("with", "without", "gap"))
    with_it.mkdir(), without.mkdir(), gap.mkdir()
    load(folder_with(with_it, kernels=EXACT + FOLDED + TILES + NARROW, rules=rules))
    with pytest.raises(ConfigError, match=r"no rule serves MoE layers on 9\.0a, e4m3fn act"):
        load(folder_with(gap, kernels=EXACT + FOLDED + TILES + NARROW, rules=first + dense))
    with pytest.raises(ConfigError, match=r"rule 2 .* never wins"):
        load(folder_with(without, kernels=EXACT + TILES + NARROW, rules=rules))


def test_rules_that_serve_e4m3_alone_leave_a_gap(tmp_path: Path) -> None:
    formats = EXACT.replace('["e4m3fn"]', '["e4m3fn", "s8"]')
    rule = '[[rules]]\nactivations = {}\ntile = "m8n128k128"\n'
    right, gap = tmp_path / "right", tmp_path / "gap"
    right.mkdir(), gap.mkdir()
    load(folder_with(right, kernels=formats + TILES, rules=rule.format('["e4m3fn"]') + rule.format('["s8"]')))
    with pytest.raises(ConfigError, match=r"rule 1 is the last, and no rule serves .* s8 activations"):
        load(folder_with(gap, kernels=formats + TILES, rules=rule.format('["e4m3fn"]')))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"native\.toml"):
        load(tmp_path)


WGMMA = '[[tiles]]\nfamily = "machete"\nm = [64, 128]\nn = 128\nk = 128\nstages = 4\n'
PAIR = '["machete-m64n128k128", "machete-m128n128k128"]'
EIGHT = '[[formats]]\nweight = "u8b128"\nactivations = ["f16"]\ngroup_sizes = [128]\n'
REST = '[[rules]]\ntile = "m8n128k128"\n'


def times(tile: str, activations: int = 16, **numbers: float) -> str:
    given = {"launch": 1.0, "column": 0.005, "wave": 0.5} | numbers
    lines = [f"{name} = {number}" for name, number in given.items()]
    return "\n".join(["[[times]]", f'tile = "{tile}"', f"activations = {activations}", *lines, ""])


BOTH = times("machete-m64n128k128") + times("machete-m128n128k128")


def choosing(tiles: str = PAIR, condition: str = "moe = false\n") -> str:
    return f"[[rules]]\n{condition}tile = {tiles}\n{REST}"


def test_a_rule_may_choose_among_tiles_that_have_times(tmp_path: Path) -> None:
    rules = choosing() + BOTH
    catalog = load(folder_with(tmp_path, kernels=KERNELS + WGMMA, rules=rules))
    assert catalog.rules[0].tiles == ("machete-m64n128k128", "machete-m128n128k128")
    assert catalog.rules[0].predicts
    assert not catalog.rules[1].predicts
    assert catalog.find_times("machete-m128n128k128", GemmTypes(F16, U4B8, F16, F16)).column == 0.005


def test_weights_of_other_bits_may_have_times_of_their_own(tmp_path: Path) -> None:
    own = times("machete-m128n128k128", column=0.009) + "weights = 8\n"
    catalog = load(folder_with(tmp_path, kernels=KERNELS + EIGHT + WGMMA, rules=choosing() + BOTH + own))
    four, eight = (GemmTypes(F16, weight, F16, F16) for weight in (U4B8, U8B128))
    assert catalog.find_times("machete-m128n128k128", four).column == 0.005
    assert catalog.find_times("machete-m128n128k128", eight).column == 0.009
    assert catalog.find_times("machete-m64n128k128", eight).column == 0.005


def test_rules_may_name_lists_of_tiles(tmp_path: Path) -> None:
    lists = f'[lists]\nnarrow = ["machete-m64n128k128"]\nboth = {PAIR}\n'
    rules = choosing('["narrow", "machete-m128n128k128"]', "moe = false\nn = { max = 64 }\n")
    catalog = load(
        folder_with(
            tmp_path,
            kernels=KERNELS + WGMMA,
            rules=lists + rules.removesuffix(REST) + choosing('["both"]') + BOTH,
        )
    )
    assert [rule.tiles for rule in catalog.rules[:2]] == [("machete-m64n128k128", "machete-m128n128k128")] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (choosing(condition="") + BOTH, [":1: rule 1", "dense layers", "moe = false"]),
        (choosing(condition="moe = true\n") + BOTH, [":1: rule 1", "dense layers", "moe = false"]),
        (choosing("[]"), [":1: rule 1", "lists no tile"]),
        (choosing('["machete-m64n128k128", "machete-m64n128k128"]') + BOTH, [":1: rule 1", "twice"]),
        (choosing('["m8n128k128"]') + times("m8n128k128"), [":1: rule 1", "m8n128k128", "family marlin"]),
        (choosing('["machete-m96n128k128"]'), [":1: rule 1", "unknown tile 'machete-m96n128k128'"]),
        (choosing("[64]"), [":1", "str"]),
        (choosing('["both"]') + BOTH, [":1: rule 1", "unknown tile 'both'"]),
        (f"[lists]\nboth = {PAIR}\n" + choosing() + BOTH, ["no rule names the list 'both'", "drop it"]),
        (f"[lists]\nboth = {PAIR}\n" + choosing('["both", "both"]') + BOTH, [":3: rule 1", "twice"]),
        ('[lists]\nboth = "m8n128k128"\n' + choosing() + BOTH, ["array", "$.lists"]),
        (choosing(), [":1: rule 1", "machete-m64n128k128", "no [[times]] under 16-bit", "--fit"]),
        (choosing() + times("machete-m64n128k128"), [":1: rule 1", "machete-m128n128k128, which has no"]),
        (choosing() + times("machete-m64n128k128", 8), [":1: rule 1", "no [[times]] under 16-bit"]),
        (choosing() + BOTH + times("machete-m9n128k128"), [":18: times 3", "unknown", "-m9n128k128"]),
        (choosing() + BOTH + times("m8n128k128"), [":18: times 3", "m8n128k128", "no rule", "drop"]),
        (choosing() + BOTH + times("machete-m64n128k128", 8), [":18: times 3", "8-bit", "no rule", "drop"]),
        (choosing() + BOTH + times("machete-m64n128k128"), [":18: times 3", "as are others", "drop one"]),
        (choosing() + BOTH + times("machete-m64n128k128") + "weights = 3\n", [":18: times 3", "3-bit"]),
        (choosing(condition="moe = false\nweights = 3\n") + BOTH, [":1: rule 1", "3-bit weights", "are 4"]),
        (choosing() + BOTH.replace("0.005", "0.0"), [":6: times 1", "column = 0"]),
        (choosing() + BOTH.replace("0.005", "-0.005"), [":6: times 1", "column = -0.005"]),
        (choosing() + BOTH.replace("wave = 0.5", "wave = nan"), [":6: times 1", "wave = nan"]),
        (choosing() + BOTH.replace("wave = 0.5", "wave = -0.5"), [":6: times 1", "wave = -0.5"]),
        (choosing() + BOTH.replace("wave = 0.5", "wave = inf"), [":6: times 1", "wave = inf"]),
        (choosing() + BOTH.replace("wave = 0.5", "waves = 0.5"), [":6", "waves"]),
        (choosing() + BOTH.replace("wave = 0.5\n", ""), [":6", "wave"]),
    ],
)  # fmt: skip
def test_wrong_choices_and_times(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(folder_with(tmp_path, kernels=KERNELS + WGMMA, rules=text))
    for word in words:
        assert word in str(caught.value)


def test_a_rule_of_tiles_serves_what_one_of_them_can_be(tmp_path: Path) -> None:
    """W4A8, which 9.0a alone has, needs stages of 128 inputs."""
    shallow = NARROW[: NARROW.index("[[tiles]]", 1)].replace("k = 128", "k = 64")
    kernels = FORMATS + EXACT + FOLDED + TILES + NARROW + shallow
    rules = (
        '[[rules]]\nmoe = true\narch = ["9.0"]\nactivations = 8\ntile = "machete-grouped-m64n128k128"\n'
        '[[rules]]\nmoe = false\narch = ["9.0"]\nactivations = 8\ntile = ["machete-m64n128k64"{}]\n'
    )
    own = times("machete-m64n128k64", 8)
    other = times("machete-m64n128k128", 8)
    served, gap = tmp_path / "served", tmp_path / "gap"
    served.mkdir(), gap.mkdir()
    load(
        folder_with(
            served, kernels=kernels, rules=rules.format(', "machete-m64n128k128"') + REST + own + other
        )
    )
    with pytest.raises(
        ConfigError, match=r"rule 3 is the last, and no rule serves dense layers on 9\.0a, e4m3fn"
    ):
        load(folder_with(gap, kernels=kernels, rules=rules.format("") + REST + own))
