"""The generated Marlin folders equal the published table, for every release and list of targets."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from cpu.vllm.marlin_table import FP8, builds_fp8, expected, parse_chain, parse_kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.arch import parse_list
from billhook.errors import ConfigError, InputError
from billhook.vllm import marlin, release
from billhook.vllm.job import Job
from billhook.vllm.release import load_release, matches, releases

RELEASES = ["0.16", "0.20", "0.33"]
ARCHS = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0a", "10.0f", "10.3", "11.0", "12.0", "12.1a"]


def job(number: str, archs: str, selector: str = "chain", family: str = "marlin-moe") -> Job:
    return Job(family, load_release(number), tuple(parse_list(archs)), selector)


def check_against_table(number: str, archs: list[str]) -> None:
    one = job(number, ",".join(archs))
    capabilities = {arch.capability for arch in one.archs}
    files = {file.path: file.text for file in marlin.render(one)}
    table = expected(number, capabilities)
    assert list(files) == ["kernel_selector.h", *table]
    for name, kernels in table.items():
        assert parse_kernels(files[name]) == kernels
        assert files[name].count("template __global__") == len(kernels)
        assert len(set(kernels)) == len(kernels)
    chain = parse_chain(files["kernel_selector.h"])
    assert [kernel for _, kernel in chain] == [kernel for kernels in table.values() for kernel in kernels]
    assert all(condition == kernel for condition, kernel in chain)
    check_ending(files["kernel_selector.h"], number, capabilities, len(chain))


def check_ending(text: str, number: str, capabilities: set[tuple[int, int]], branches: int) -> None:
    macro = "STD_TORCH_CHECK" if number == "0.33" else "TORCH_CHECK"
    refusal = (
        f"else if (a_type == vllm::{FP8})\n"
        f'  {{ {macro}(false, "marlin kernel with fp8 activation is not built."); }}\n'
    )
    built = builds_fp8(number, capabilities)
    assert text.endswith(refusal) is not built
    assert text.count("TORCH_CHECK") == (not built)
    assert len(re.findall(r"\bif \(", text)) == branches + (not built)
    assert len(re.findall(r"^if \(", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("number", RELEASES)
@pytest.mark.parametrize(
    "archs", [[arch] for arch in ARCHS] + [ARCHS, ARCHS[::-1], ["7.5", "8.0"], ["7.5", "8.9"]]
)
def test_table(number: str, archs: list[str]) -> None:
    check_against_table(number, archs)


@settings(max_examples=25, deadline=None)
@given(number=st.sampled_from(RELEASES), archs=st.lists(st.sampled_from(ARCHS), min_size=1, max_size=6))
def test_table_for_any_list(number: str, archs: list[str]) -> None:
    check_against_table(number, archs)


@pytest.mark.parametrize(
    ("number", "archs", "count"),
    [
        ("0.16", "7.5,8.9", 1272),
        ("0.20", "7.5,8.9", 1287),
        ("0.33", "7.5,8.9", 1197),
        ("0.33", "8.0", 672),
        ("0.33", "12.1", 876),
        ("0.20", "12.1", 732),
    ],
)
def test_counts(number: str, archs: str, count: int) -> None:
    assert len(marlin.plan(job(number, archs)).kernels) == count


def test_dense_and_moe_have_the_same_kernels() -> None:
    for number in RELEASES:
        assert marlin.render(job(number, "7.5,8.9")) == marlin.render(job(number, "7.5,8.9", family="marlin"))


def test_original_names_cover_every_list() -> None:
    for number in RELEASES:
        every = {"kernel_selector.h", *expected(number, {(7, 5), (8, 9)})}
        assert marlin.original_names(job(number, "8.0")) == every


def test_narrowed_plan_raises_for_what_it_left_out() -> None:
    full = marlin.plan(job("0.33", "7.5,8.0"))
    plan = full.narrowed(lambda kernel: kernel.format == "gptq-int4" and kernel.group_blocks == 8)
    assert {file.name for file in plan.files} < {file.name for file in full.files}
    assert set(plan.kernels) | set(plan.dropped) == set(full.kernels)
    text = marlin.render_selector(plan, job("0.33", "7.5,8.0"))
    assert len(parse_chain(text)) == len(plan.kernels)
    assert text.count("STD_TORCH_CHECK") == len(plan.dropped) + 1
    assert "--formats awq-int4 --act int8 --group-size 128" in text
    assert "--formats gptq-int4 --act bf16 --group-size -1" in text


def test_release_patterns() -> None:
    capabilities = [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0), (12, 1)]
    meant = {
        "8.9": [(8, 9)],
        "12.x": [(12, 0), (12, 1)],
        ">=8.0": capabilities[1:],
    }
    for pattern, want in meant.items():
        assert [one for one in capabilities if matches(one, (pattern,))] == want
    assert not any(matches(one, ()) for one in capabilities)


def test_releases_are_found_and_named() -> None:
    assert releases() == RELEASES
    with pytest.raises(InputError, match=r"'0\.17' is not known; known releases: 0\.16, 0\.20, 0\.33"):
        load_release("0.17")


def test_bad_release_file_names_file_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (release.CATALOG / "0.33.toml").read_text()
    broken = {"0.91": text.replace("stages = 4", "stages = 'four'"), "0.92": text + "surprise = 1\n"}
    for number, content in broken.items():
        (tmp_path / f"{number}.toml").write_text(content)
    monkeypatch.setattr(release, "CATALOG", tmp_path)
    with pytest.raises(
        ConfigError, match=r"0\.91\.toml: Expected `int`, got `str` - at `\$\.marlin\.sets\[0\]\.stages`"
    ):
        load_release("0.91")
    with pytest.raises(ConfigError, match=r"0\.92\.toml: .*surprise"):
        load_release("0.92")


def test_every_kernel_has_one_home() -> None:
    for number, selector in itertools.product(RELEASES, ["chain", "switch"]):
        files = marlin.render(job(number, "7.5,8.9", selector))
        kernels = [kernel for file in files[1:] for kernel in parse_kernels(file.text)]
        assert len(set(kernels)) == len(kernels)
        assert files[0].text.count("kernel = Marlin<") == len(kernels)
