"""Bundles on the GPU: the operators take their kernels from one, and `billhook verify` runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from gpu.problems import check, draw_weight, exact, host  # noqa: E402

import billhook  # noqa: E402
from billhook.build import (  # noqa: E402
    Bundle,
    Cache,
    cache_folder,
    compile_units,
    plan_units,
    write_bundle,
)
from billhook.build.compile import default_jobs  # noqa: E402
from billhook.cli import main  # noqa: E402
from billhook.config import GemmTypes, Problem  # noqa: E402
from billhook.driver import native_arch  # noqa: E402
from billhook.dtypes import BF16, U4B8  # noqa: E402
from billhook.errors import UnsupportedError  # noqa: E402
from billhook.formats import reference  # noqa: E402
from billhook.plan import plan_problems  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    types = GemmTypes(BF16, U4B8, BF16, BF16)
    problems = [Problem(1, 1536, 1040, types, 128), Problem(1, 272, 528, types, 32, num_experts=8, top_k=2)]
    planned = plan_problems(problems, [native_arch(torch.cuda.get_device_capability())], max_tokens=600)
    artifacts, failures = compile_units(plan_units(planned), Cache(cache_folder()), default_jobs())
    assert not failures, failures
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small", planned, artifacts)


@pytest.fixture
def used(bundle: Bundle) -> Iterator[None]:
    billhook.use_bundle(bundle.folder)
    yield
    billhook.use_bundle(None)


def test_operators_take_kernels_from_the_bundle(used: None) -> None:
    weight = draw_weight(1040, 1536, 128, torch.bfloat16)
    for m in (1, 33, 600, 900):
        a = torch.randn(m, 1040, device="cuda").bfloat16()
        check(billhook.gemm(a, weight), reference.gemm(host(a), exact(weight)), weight, None, f"m={m}")
    with pytest.raises(UnsupportedError, match="has no kernel for n=64"):
        billhook.gemm(a, draw_weight(1040, 64, 128, torch.bfloat16))


def test_a_layer_of_the_bundle_is_routed_by_the_bundle(used: None) -> None:
    weight = draw_weight(528, 272, 32, torch.bfloat16, experts=8)
    a = torch.randn(50, 528, device="cuda").bfloat16()
    ids = torch.randint(0, 8, (50, 2), device="cuda")
    out = billhook.moe_gemm(a, weight, ids)
    check(out, reference.moe_gemm(host(a), exact(weight), ids.cpu()), weight, None, "bundle")


def test_verify_passes_and_says_so(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["verify", str(bundle.folder), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, report
    assert report["passed"]
    assert [one["kernel"] for one in report["kernels"]] == [one.name for one in bundle.plan.kernels]
    assert all(0 < one["worst"] <= 1 and one["runs"] for one in report["kernels"])
    assert Path(report["bundle"]) == bundle.folder
    billhook.use_bundle(None)
