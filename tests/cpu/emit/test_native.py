from __future__ import annotations

from pathlib import Path

import pytest

from billhook import arch
from billhook.config import parse_name
from billhook.emit import SUPPORT, emit, emit_support, support_name

GOLDEN = Path(__file__).parents[2] / "golden/kernels"
NAMES = [
    "marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s4_moe_sm90a",
    "marlin_f16_u4b8_f16_f16_gch_m64n256k128s3_dense_sm80",
    "marlin_e4m3fn_e2m1f_e8m0fnu_bf16_g32_m16n128k256s3_moe_sm89",
]


@pytest.mark.parametrize("name", NAMES)
def test_sources_are_as_recorded(name: str) -> None:
    (source,) = emit([parse_name(name)])
    assert source.path == f"{name}.cu"
    assert source.text == (GOLDEN / source.path).read_text()


def test_sources_come_in_the_order_asked_for_and_once_each() -> None:
    configs = [parse_name(name) for name in NAMES]
    paths = [source.path for source in emit([*reversed(configs), *configs])]
    assert paths == [f"{name}.cu" for name in reversed(NAMES)]


def test_support_is_named_after_its_target_and_has_the_same_text_for_all() -> None:
    assert support_name("route", arch.parse("9.0a")) == "route_sm90a"
    for part in SUPPORT:
        sources = [emit_support(part, arch.parse(target)) for target in ("8.0", "9.0a")]
        assert [source.path for source in sources] == [f"{part}_sm80.cu", f"{part}_sm90a.cu"]
        assert sources[0].text == sources[1].text
