"""GPU targets: every accepted spelling, every refused one."""

from __future__ import annotations

import pytest
from cpu.strategies import archs
from hypothesis import given
from hypothesis import strategies as st

from billhook.arch import Arch, parse, parse_list, supported
from billhook.errors import ArchError


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        ("80", Arch(8, 0)),
        ("8.0", Arch(8, 0)),
        ("sm_80", Arch(8, 0)),
        ("SM80", Arch(8, 0)),
        ("9.0a", Arch(9, 0, "a")),
        ("sm_90a", Arch(9, 0, "a")),
        ("90A", Arch(9, 0, "a")),
        ("12.0f", Arch(12, 0, "f")),
        ("120", Arch(12, 0)),
        ("9.0+PTX", Arch(9, 0, ptx=True)),
        (" 8.9+ptx ", Arch(8, 9, ptx=True)),
    ],
)
def test_accepts(text: str, arch: Arch) -> None:
    assert parse(text) == arch


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "7.0",
        "8.",
        ".8",
        "-1.0",
        "13.7",
        "8.0b",
        "8.0a",
        "9.0f",
        "sm_",
        "8.0+",
        "native",
        "9.0a+PTXx",
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ArchError):
        parse(text)


@given(archs(), st.booleans())
def test_spellings_of_one_target_agree(arch: Arch, ptx: bool) -> None:
    suffix = "+PTX" if ptx else ""
    spellings = (arch.dotted, arch.sm, arch.target, arch.target.removeprefix("sm_"))
    assert {parse(text + suffix) for text in spellings} == {Arch(*arch.capability, arch.suffix, ptx)}


def test_list_keeps_order_and_drops_repeats() -> None:
    found = parse_list(["9.0a;8.0, 8.0", "sm_89 90a"])
    assert found == [Arch(9, 0, "a"), Arch(8, 0), Arch(8, 9)]


@pytest.mark.parametrize("text", ["", " ,; ", [], ["", " "]])
def test_empty_list_is_refused(text: str | list[str]) -> None:
    with pytest.raises(ArchError, match="no GPU architecture"):
        parse_list(text)


def test_native_asks_for_the_machines_gpus() -> None:
    gpus = [Arch(9, 0, "a"), Arch(8, 9)]
    assert parse_list("8.9,native", lambda: gpus) == [Arch(8, 9), Arch(9, 0, "a")]
    for nothing in (None, lambda: []):
        with pytest.raises(ArchError, match="needs a GPU"):
            parse_list("native", nothing)


def test_native_is_asked_only_when_written() -> None:
    def never() -> list[Arch]:
        raise RuntimeError

    assert parse_list("8.0", never) == [Arch(8, 0)]


def test_runs_on() -> None:
    assert parse("8.0").runs_on((8, 9))
    assert not parse("8.9").runs_on((8, 6))
    assert not parse("8.9").runs_on((9, 0))
    assert parse("9.0a").runs_on((9, 0))
    assert parse("10.0f").runs_on((10, 3))
    assert not parse("10.0a").runs_on((10, 3))


def test_every_supported_target_has_limits() -> None:
    for text in supported():
        limits = parse(text).limits
        assert 0 < limits.smem_per_cta <= limits.smem_per_sm
        assert limits.threads_per_sm % 32 == 0
