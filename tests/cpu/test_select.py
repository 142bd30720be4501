"""Selection: the first rule with a legal tile wins, the others are told why not, spans agree with it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from cpu.strategies import requests
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from billhook.arch import Arch, parse
from billhook.catalog import Catalog, Format, Origin, Shape, deepest, load
from billhook.config import GemmTypes, Problem
from billhook.dtypes import BF16, E2M1F, E4M3FN, E8M0FNU, F16, S8, U4B8, U8B128, DType
from billhook.errors import InputError, UnsupportedError
from billhook.families import illegal, unserved, work
from billhook.select import candidates, select, spans

TYPES = GemmTypes(BF16, U4B8, BF16, BF16)
DENSE = Problem(m=1, n=4096, k=4096, types=TYPES, group_size=128)
MOE = Problem(m=1, n=1536, k=2048, types=TYPES, group_size=128, num_experts=128, top_k=8)


@given(requests())
def test_the_chosen_kernel_is_legal_and_serves(asked: tuple[Problem, Arch]) -> None:
    problem, arch = asked
    config = select(problem, arch).config
    assert illegal(config) is None
    assert unserved(config, problem) is None
    assert config.arch == arch


@given(requests())
def test_the_first_rule_with_a_legal_tile_wins(asked: tuple[Problem, Arch]) -> None:
    problem, arch = asked
    catalog = load()
    for rule in catalog.rules:
        inside = (
            rule.rows.above < problem.rows_per_expert <= rule.rows.max
            and problem.n in rule.n
            and problem.k in rule.k
            and (not problem.moe or problem.num_experts in rule.experts)
            and rule.applies(problem.moe, problem.types.a, problem.types.b.bits, arch.capability)
        )
        shapes = [catalog.by_name[tile] for tile in rule.tiles]
        tried = [deepest(one.kernel(problem.types, problem.group_size, problem.moe, arch)) for one in shapes]
        legal = [config for config, why in tried if why is None]
        if inside and legal:
            assert select(problem, arch).config in legal
            return
    pytest.fail("no rule serves the problem")


@given(requests())
def test_every_other_tile_is_rejected_with_a_reason(asked: tuple[Problem, Arch]) -> None:
    problem, arch = asked
    choice = select(problem, arch)
    shown = [one.config for one in choice.rejected] + [choice.config]
    assert sorted(Shape.of(one).name for one in shown) == sorted(load().by_name)
    for one in choice.rejected:
        why = illegal(one.config)
        assert one.why_not == why if why else one.why_not.startswith("could serve")


@given(requests(), st.integers(1, 20000), st.data())
def test_spans_agree_with_single_answers(asked: tuple[Problem, Arch], last: int, data: st.DataObject) -> None:
    problem, arch = asked
    found = spans(problem, last, arch)
    assert [span.first for span in found] == [1, *(span.last + 1 for span in found[:-1])]
    assert found[-1].last == last
    edges = {m for span in found for m in (span.first, span.last)}
    for m in {*edges, data.draw(st.integers(1, last))}:
        serving = next(span for span in found if span.first <= m <= span.last)
        assert serving.choice.config == select(replace(problem, m=m), arch).config


def write_catalog(folder: Path, tiles: str, rules: str) -> Catalog:
    """Return a catalog of the tests' own: the installed one changes with what was measured."""
    (folder / "rules").mkdir()
    formats = '[[formats]]\nweight = "u4b8"\nactivations = ["bf16"]\ngroup_sizes = [128]\n'
    (folder / "native.toml").write_text(formats + tiles)
    (folder / "rules/native.toml").write_text(rules)
    return load(folder)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog of Marlin tiles by rows."""
    return write_catalog(
        tmp_path,
        '[[tiles]]\nfamily = "marlin"\nm = [8, 16, 32, 64]\nn = 128\nk = 256\nstages = 4\n'
        '[[tiles]]\nfamily = "marlin"\nm = [64]\nn = 256\nk = 128\nstages = 2\n',
        '[[rules]]\nrows = { max = 8 }\ntile = "m8n128k256"\n'
        '[[rules]]\nrows = { max = 16 }\ntile = "m16n128k256"\n'
        '[[rules]]\nrows = { max = 32 }\ntile = "m32n128k256"\n'
        '[[rules]]\ntile = "m64n128k256"\n'
        '[[rules]]\ntile = "m64n256k128"\n',
    )


def test_spans_switch_where_the_rules_do(catalog: Catalog) -> None:
    arch = parse("9.0a")
    assert [span.last for span in spans(DENSE, 100, arch, catalog)] == [8, 16, 32, 100]
    # 8 tokens x 8 experts over 128: a mean of 8 rows at 128 tokens
    assert [span.last for span in spans(MOE, 1000, arch, catalog)] == [128, 256, 512, 1000]


def test_a_tile_that_does_not_fit_gives_way_to_the_next_rule(catalog: Catalog) -> None:
    choice = select(replace(MOE, m=4096), parse("8.6"), catalog)
    assert Shape.of(choice.config).name == "m64n256k128"
    assert "rule 5 (otherwise)" in choice.reason
    assert "rule 4 wants m64n128k256: needs" in choice.reason
    assert "shared memory" in choice.reason


def test_rules_that_are_passed_for_one_reason_are_told_together(catalog: Catalog) -> None:
    *first, refused, last = catalog.rules
    rules = (*first, refused, refused, last)
    origins = tuple(Origin("rules.toml", number) for number, _ in enumerate(rules, 1))
    twice = structs.replace(catalog, rules=rules, origins=origins)
    choice = select(replace(MOE, m=4096), parse("8.6"), twice)
    assert "rule 4, rule 5 want other tiles: needs" in choice.reason


def test_the_reason_tells_a_shallower_pipeline(catalog: Catalog) -> None:
    assert "2 stages, since 4 do not fit" in select(replace(DENSE, m=32), parse("8.6"), catalog).reason
    assert "fit" not in select(replace(DENSE, m=32), parse("9.0a"), catalog).reason


@pytest.mark.parametrize("problem", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("a", [E4M3FN, S8], ids=str)
def test_few_rows_of_8_bit_activations_are_marlin_s_many_machete_s_where_it_has_the_format(
    problem: Problem, a: DType
) -> None:
    types = GemmTypes(a, U4B8, BF16, BF16)
    served = (
        (-1, "9.0a", "machete"),
        (128, "9.0a", "machete"),
        (64, "9.0a", "marlin"),
        (-1, "8.9", "marlin"),
    )
    for group_size, arch, last in served:
        asked = replace(problem, types=types, group_size=group_size)
        assert select(asked, parse(arch)).config.family == "marlin"
        assert select(replace(asked, m=8192), parse(arch)).config.family == last


@pytest.mark.parametrize(
    ("problem", "arch", "words"),
    [
        (replace(DENSE, n=100), "9.0a", ["n must", "100"]),
        (replace(DENSE, k=8), "9.0a", ["k must", "8"]),
        (DENSE, "7.5", ["7.5", "8.0"]),
        (replace(DENSE, types=GemmTypes(E4M3FN, U4B8, F16, F16)), "8.0", ["8.9 or later (got 8.0)"]),
        (
            replace(DENSE, types=GemmTypes(E4M3FN, U8B128, F16, F16)),
            "9.0a",
            ["e4m3fn_u8b128", "s8_u8b128_f16"],
        ),
        (replace(DENSE, group_size=16), "9.0a", ["group_size", "16", "-1"]),
        (replace(DENSE, types=GemmTypes(BF16, S8, BF16, BF16)), "9.0a", ["bf16_s8_bf16_bf16", str(TYPES)]),
        (replace(DENSE, types=GemmTypes(BF16, U4B8, F16, BF16)), "9.0a", ["bf16_u4b8_f16_bf16"]),
        (
            replace(DENSE, types=GemmTypes(F16, E2M1F, E8M0FNU, F16), group_size=32),
            "9.0a",
            ["f16_e2m1f_e8m0fnu_f16", "served: bf16_e2m1f_e8m0fnu_bf16, f16_e2m1f_e4m3fn_f16"],
        ),
    ],
)
def test_what_no_kernel_serves_is_refused(problem: Problem, arch: str, words: list[str]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        select(problem, parse(arch))
    for word in words:
        assert word in str(caught.value)
    if problem.types == TYPES:
        assert all(why for _, why in candidates(problem, parse(arch)))


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (replace(DENSE, m=0), "m must"),
        (replace(DENSE, num_experts=-1), "num_experts"),
        (replace(DENSE, top_k=2), "top_k"),
        (replace(MOE, top_k=0), "top_k"),
        (replace(MOE, top_k=129), "129"),
    ],
)
def test_nonsense_is_refused(problem: Problem, word: str) -> None:
    with pytest.raises(InputError, match=word):
        select(problem, parse("9.0a"))


def test_spans_need_a_last_m() -> None:
    with pytest.raises(InputError, match="largest m"):
        spans(DENSE, 0, parse("9.0a"))


EXPERTS = replace(MOE, types=GemmTypes(E4M3FN, U4B8, E4M3FN, BF16))  # W4A8
SMALL, WIDE, DEEP = DENSE, replace(DENSE, n=28672), replace(DENSE, k=14336)
M8, M16 = "m8n128k256", "machete-m16n128k256"


def tile_of(problem: Problem, arch: str = "9.0a") -> str:
    return Shape.of(select(problem, parse(arch)).config).name


@pytest.mark.parametrize(
    ("problem", "a", "m", "tile"),
    [
        *((one, a, 8, M8) for one in (SMALL, WIDE, DEEP) for a in (F16, BF16, S8)),
        *((WIDE, a, m, M16) for a in (F16, BF16, E4M3FN, S8) for m in (9, 16)),
        *((SMALL, a, m, M16) for a in (E4M3FN, S8) for m in (9, 16)),
        *((SMALL, a, m, "m16n128k256") for a in (F16, BF16) for m in (9, 16)),
        *((DEEP, a, 16, M16) for a in (F16, BF16)),
        (SMALL, E4M3FN, 8, M8),
        (DEEP, E4M3FN, 8, M8),
        (WIDE, E4M3FN, 1, M16),
        (replace(SMALL, n=4160), E4M3FN, 8, M16),
        *((SMALL, a, m, M16) for a in (E4M3FN, S8) for m in (17, 24)),
        *((WIDE, a, 17, "machete-m32n128k256") for a in (E4M3FN, S8)),
        *((SMALL, a, 17, "machete-m32n128k256") for a in (F16, BF16)),
    ],
)
@pytest.mark.parametrize("group_size", [128, -1])
def test_few_rows_of_a_dense_layer(problem: Problem, a: DType, m: int, tile: str, group_size: int) -> None:
    c = F16 if a == F16 else BF16
    asked = replace(problem, m=m, types=GemmTypes(a, U4B8, c, c), group_size=group_size)
    assert tile_of(asked) == tile


@pytest.mark.parametrize(
    ("problem", "a", "m", "tile"),
    [
        *((WIDE, BF16, m, "m256n128k64c2") for m in (512, 4096, 5000)),
        *((WIDE, E4M3FN, m, "m256n128k128c2") for m in (512, 4096, 5000)),
        (WIDE, BF16, 300, "m160n128k64c2"),
        (WIDE, BF16, 272, "m144n128k128c2"),
        (WIDE, E4M3FN, 300, "m160n128k128c2"),
        (SMALL, BF16, 512, "m128n128k128"),
        (replace(SMALL, n=8192, k=8192), BF16, 100, "m112n128k128"),
        (replace(SMALL, n=2048, k=2048), BF16, 100, "m32n128k256"),
    ],
)
def test_many_rows_of_a_dense_layer_are_those_that_were_measured_to_be_fast(
    problem: Problem, a: DType, m: int, tile: str
) -> None:
    types = TYPES if a == BF16 else EXPERTS.types
    assert tile_of(replace(problem, m=m, types=types)) == f"machete-{tile}"


@pytest.mark.parametrize("a", [E4M3FN, S8], ids=str)
@pytest.mark.parametrize("m", [192, 300, 1024, 4096, 5000])
def test_many_rows_under_scales_that_multiply_sums_get_the_widest_tile(a: DType, m: int) -> None:
    types = GemmTypes(a, U4B8, BF16, BF16)
    assert [tile_of(replace(one, m=m, types=types)) for one in (SMALL, WIDE)] == ["machete-m96n128k256"] * 2


@pytest.mark.parametrize("m", [1, 8, 16, 24])
def test_few_rows_of_w4a8_are_machete_s(m: int) -> None:
    assert tile_of(replace(DENSE, m=m, types=EXPERTS.types)) == M16


def test_few_rows_are_marlin_s_on_other_targets() -> None:
    assert tile_of(replace(WIDE, types=GemmTypes(E4M3FN, U4B8, BF16, BF16)), "8.9") == M8
    assert tile_of(replace(WIDE, m=16), "9.0") == "m16n128k256"


@pytest.mark.parametrize(
    ("rows", "tile"),
    [
        (11, "m16n128k256"),
        (12, "m32n128k256"),
        (22, "m32n128k256"),
        (23, "m48n128k256"),
        (36, "m48n128k256"),
        (37, "m64n128k256"),
        (51, "m64n128k256"),
        (52, "m80n128k256"),
        (66, "m80n128k256"),
        (67, "m128n128k256"),
        (120, "m128n128k256"),
        (121, "m160n128k128"),
        (146, "m160n128k128"),
        (147, "m192n128k128"),
        (172, "m192n128k128"),
        (173, "m256n128k128"),
        (1000, "m256n128k128"),
    ],
)
def test_experts_under_8_bit_activations_have_rows_that_a_tile_holds(rows: int, tile: str) -> None:
    m = rows * MOE.num_experts // MOE.top_k
    assert tile_of(replace(EXPERTS, m=m)) == f"machete-grouped-{tile}"
    promoted = tile_of(replace(EXPERTS, m=m, types=GemmTypes(S8, U4B8, BF16, BF16)))
    if rows > 66:  # group scales of the output's type: wider tiles do not exist
        assert promoted == "machete-grouped-m80n128k256"
    else:
        assert promoted == (f"machete-grouped-{tile}" if rows > 11 else tile)


@pytest.mark.parametrize(
    ("rows", "tile"),
    [
        (232, "m256n128k128"),
        (233, "m144n128k128"),
        (270, "m144n128k128"),
        (271, "m256n128k128"),
        (403, "m176n128k128"),
    ],
)
@pytest.mark.parametrize(
    "types", [GemmTypes(E4M3FN, E4M3FN, BF16, BF16), GemmTypes(S8, U8B128, F16, F16)], ids=str
)
def test_experts_of_8_bit_weights_have_tiles_that_leave_room_for_stages(
    types: GemmTypes, rows: int, tile: str
) -> None:
    m = rows * MOE.num_experts // MOE.top_k
    assert tile_of(replace(EXPERTS, m=m, types=types, group_size=-1)) == f"machete-grouped-{tile}"


@pytest.mark.parametrize(
    ("layer", "m", "tile"),
    [
        (SMALL, 24, "machete-m16n128k256"),
        (SMALL, 64, "machete-m32n128k256"),
        (SMALL, 65, "machete-m64n128k256"),
        (SMALL, 256, "machete-m64n128k256"),
        (replace(SMALL, n=8192, k=8192), 128, "machete-m64n128k256"),
        (replace(SMALL, n=8192, k=8192), 129, "machete-m128n128k256"),
        (replace(SMALL, n=2048, k=2048), 64, "machete-m16n128k256"),
        (replace(SMALL, n=2048, k=2048), 65, "machete-m48n128k256"),
        (WIDE, 17, "machete-m128n128k256"),
        (WIDE, 256, "machete-m256n128k128"),
        (WIDE, 4096, "machete-m256n128k128c2"),
    ],
)
def test_rows_beside_8_bit_weights_have_bands_up_to_256(layer: Problem, m: int, tile: str) -> None:
    for types in (GemmTypes(E4M3FN, E4M3FN, BF16, BF16), GemmTypes(S8, U8B128, F16, F16)):
        assert tile_of(replace(layer, m=m, types=types, group_size=-1)) == tile


def test_rules_tell_many_experts_from_few() -> None:
    few = Problem(8192, 4096, 4096, TYPES, 128, num_experts=8, top_k=2)
    many = replace(few, m=32768, num_experts=128, top_k=8)
    target = parse("9.0a")
    assert few.rows_per_expert == many.rows_per_expert
    assert select(few, target).config.grouped
    assert not select(many, target).config.grouped


TIMES = """
[[times]]
tile = "machete-m64n128k128"
activations = 16
launch = 2.0
column = 0.004
wave = 0.5

[[times]]
tile = "machete-m128n128k128"
activations = 16
launch = 1.0
column = 0.006
wave = 0.5

[[times]]
tile = "machete-m256n128k64"
activations = 16
launch = 1.0
column = 0.0105
wave = 0.0
"""


@pytest.fixture
def timed(tmp_path: Path) -> Catalog:
    """A catalog of tiles that are chosen by time up to 1000 rows, of which the widest holds halves."""
    return write_catalog(
        tmp_path,
        '[[tiles]]\nfamily = "marlin"\nm = [16]\nn = 128\nk = 128\nstages = 4\n'
        '[[tiles]]\nfamily = "machete"\nm = [64, 128]\nn = 128\nk = 128\nstages = 8\n'
        '[[tiles]]\nfamily = "machete"\nm = [256]\nn = 128\nk = 64\nstages = 5\n',
        "[[rules]]\nmoe = false\nrows = { above = 16, max = 1000 }\n"
        'tile = ["machete-m64n128k128", "machete-m256n128k64", "machete-m128n128k128"]\n'
        '[[rules]]\nmoe = false\nrows = { above = 16 }\ntile = "machete-m256n128k64"\n'
        f'[[rules]]\ntile = "m16n128k128"\n{TIMES}',
    )


@pytest.mark.parametrize("m", [17, 64, 65, 200, 256, 300, 600, 1000])
@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (28672, 4096), (1024, 8192)])
def test_of_several_tiles_the_one_with_the_least_predicted_time_wins(
    timed: Catalog, m: int, n: int, k: int
) -> None:
    problem, arch = replace(DENSE, m=m, n=n, k=k), parse("9.0a")
    times = {}
    for one in timed.times:
        config, _ = deepest(timed.by_name[one.tile].kernel(TYPES, 128, False, arch))
        done = work(config, m, n, k)
        times[one.tile] = one.launch + one.column * done.columns + one.wave * done.waves
    choice = select(problem, arch, timed)
    best = Shape.of(choice.config).name
    assert best == min(times, key=lambda tile: times[tile])
    assert "rule 1 (dense, 16 < rows <= 1000): the fastest of 3 tiles, as predicted" in choice.reason
    told = {Shape.of(one.config).name: one.why_not for one in choice.rejected}
    for tile in times.keys() - {best}:
        words = f"predicted to be slower: {times[tile]:.2f} us, the chosen one {times[best]:.2f} us"
        assert told[tile] == f"could serve, but is {words}"
    assert told["m16n128k128"] == "could serve; rule 3 names it, but an earlier rule won"


def test_the_first_of_equal_tiles_wins(timed: Catalog) -> None:
    same = tuple(structs.replace(one, launch=9.0, column=0.0, wave=0.0) for one in timed.times)
    choice = select(replace(DENSE, m=300), parse("9.0a"), structs.replace(timed, times=same))
    assert Shape.of(choice.config).name == "machete-m64n128k128"
    assert any("9.00 us, the chosen one 9.00 us" in one.why_not for one in choice.rejected)


def test_tiles_that_are_not_legal_are_left_out_of_the_choice(timed: Catalog) -> None:
    first, *rest = timed.rules
    fewer = structs.replace(timed, rules=(first, rest[-1]), origins=timed.origins[:2])
    refused = select(replace(DENSE, m=300), parse("8.0"), fewer)
    assert "rule 1 wants one of 3 tiles: needs the target 9.0a" in refused.reason
    narrow = GemmTypes(E4M3FN, U4B8, E4M3FN, BF16)  # W4A8, whose stages are of 128 inputs
    asked = replace(DENSE, m=300, types=narrow)
    formats = (*timed.formats, Format("u4b8", ("e4m3fn",), (128,), "e4m3fn", ("bf16",)))
    times = (*timed.times, *(structs.replace(one, activations=8) for one in timed.times))
    choice = select(asked, parse("9.0a"), structs.replace(timed, formats=formats, times=times))
    assert "the fastest of 2 tiles, as predicted" in choice.reason
    told = {Shape.of(one.config).name: one.why_not for one in choice.rejected}
    assert told["machete-m256n128k64"].startswith("tile_k must be a multiple of 128")
    alone = structs.replace(first, tile=("machete-m256n128k64", "machete-m64n128k128"))
    only = structs.replace(timed, formats=formats, times=times, rules=(alone, *rest))
    assert "the only one of its tiles that can be" in select(asked, parse("9.0a"), only).reason


BRUTE_FORCE = [
    (28672, 4096, TYPES, 128),
    (4096, 4096, TYPES, 128),
    (1008, 1536, TYPES, -1),
    (8192, 7168, GemmTypes(F16, U8B128, F16, F16), 64),
    (6144, 4096, EXPERTS.types, 128),
    (2048, 4096, GemmTypes(S8, U4B8, BF16, BF16), -1),
    (4096, 4096, GemmTypes(S8, U4B8, BF16, BF16), 128),
]


@pytest.mark.parametrize(("n", "k", "types", "group_size"), BRUTE_FORCE, ids=str)
def test_spans_are_those_of_every_m(n: int, k: int, types: GemmTypes, group_size: int) -> None:
    problem, arch, last = Problem(1, n, k, types, group_size), parse("9.0a"), 1100
    every = [select(replace(problem, m=m), arch) for m in range(1, last + 1)]
    runs = [list(run) for _, run in itertools.groupby(every, key=lambda one: (one.config, one.reason))]
    found = [
        (span.first, span.last, span.choice.config, span.choice.reason) for span in spans(problem, last, arch)
    ]
    assert found == [(run[0].problem.m, run[-1].problem.m, run[0].config, run[0].reason) for run in runs]


def test_spans_of_tiles_with_halves_are_those_of_every_m(timed: Catalog) -> None:
    arch, last = parse("9.0a"), 1100
    for n, k in ((28672, 4096), (14336, 512), (9216, 4096)):
        problem = replace(DENSE, n=n, k=k)
        every = [select(replace(problem, m=m), arch, timed).config for m in range(1, last + 1)]
        found = spans(problem, last, arch, timed)
        assert [one.choice.config for one in found for _ in range(one.first, one.last + 1)] == every
        assert len(found) > 3


def test_an_edge_between_rules_is_one_between_times(timed: Catalog) -> None:
    """A span never reaches over the end of a rule, whatever m it ends at."""
    for last in (1000, 1001, 1024, 1025):
        found = spans(replace(DENSE, n=28672), last, parse("9.0a"), timed)
        assert found[-1].last == last
        assert "rule 2" in found[-1].choice.reason or last == 1000
