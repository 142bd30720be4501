"""`billhook verify`: what it runs, and that it sees what is wrong; the operators run on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cpu.build.stand_in import artifacts, small_plan

from billhook.arch import parse
from billhook.build import Bundle, write_bundle
from billhook.cli import main
from billhook.config import GemmTypes, Problem, parse_name
from billhook.dtypes import BF16, E4M3FN, F16, S8, U4B8
from billhook.errors import ArchError, CudaError
from billhook.plan import plan_problems

PLAN = small_plan(max_tokens=20)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", PLAN, artifacts(PLAN))


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
    from billhook.dispatch import provider
    from billhook.ops import verify as module

    monkeypatch.setattr(provider, "_current", None)
    return module


def test_every_kernel_runs_and_is_within_its_bound(bundle: Bundle, verify: Any) -> None:
    told: list[str] = []
    verdicts = verify.verify_bundle(bundle, (9, 0), device="cpu", tell=told.append)
    assert [one.kernel for one in verdicts] == [kernel.name for kernel in PLAN.kernels]
    assert all(one.runs and one.passed and 0 < one.worst <= 1 for one in verdicts)
    assert len(told) == len(PLAN.dispatch)


def test_activations_of_8_bits_are_quantized_and_within_their_bound(tmp_path: Path, verify: Any) -> None:
    shapes = [
        Problem(1, 64, 128, GemmTypes(a, U4B8, BF16, BF16), -1, experts, min(experts, 2))
        for a in (E4M3FN, S8)
        for experts in (0, 3)
    ]
    shapes += [
        Problem(1, 64, 144, GemmTypes(E4M3FN, U4B8, E4M3FN, c), 128, experts, min(experts, 2))
        for c in (BF16, F16)
        for experts in (0, 3)
    ]
    plan = plan_problems(shapes, [parse("9.0a")], 20)
    bundle = write_bundle(tmp_path / "bundle", plan, artifacts(plan))
    verdicts = verify.verify_bundle(bundle, (9, 0), device="cpu", quick=True)
    assert [one.kernel for one in verdicts] == [kernel.name for kernel in plan.kernels]
    assert all(one.runs and one.passed and one.worst > 0 for one in verdicts)


def test_one_kernel_runs_without_a_bundle(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, experts in (("dense", 0), ("moe", 3)):
        config = parse_name(f"marlin_bf16_u4b8_bf16_bf16_g128_m16n128k128s4_{kind}_sm90a")
        problem = Problem(1, 80, 144, config.types, 128, experts, min(experts, 2))
        verdict = verify.verify_kernel(config, problem, (1, 5), device="cpu")
        assert verdict.kernel == config.name
        assert verdict.passed
        assert verdict.runs == 2 * (4 if experts else 1)  # routings
    assert verify.verify_kernel(config, problem, (5,), seed=1, device="cpu").worst != verdict.worst
    right = verify.moe_gemm
    monkeypatch.setattr(
        verify, "moe_gemm", lambda *args, out, **more: right(*args, out=out, **more).mul_(1.05)
    )
    assert not verify.verify_kernel(config, problem, (5,), device="cpu").passed


def test_counts_meet_both_edges_and_odd_ones_between(verify: Any) -> None:
    from billhook.plan import Range

    counts = verify._counts(Range(17, 64, "k"), 50, quick=False)
    assert {17, 18, 49, 50, 31, 33} <= set(counts)
    assert all(17 <= m <= 50 for m in counts)
    assert verify._counts(Range(17, 64, "k"), 8192, quick=True) == [17, 64]
    assert verify._counts(Range(17, 64, "k"), 16, quick=False) == []


@pytest.mark.parametrize("fault", ["one element", "not written", "written behind"])
def test_a_wrong_kernel_is_found(
    bundle: Bundle, verify: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    import torch

    right = verify.gemm

    def wrong(*arguments: Any, out: Any, **options: Any) -> None:
        right(*arguments, out=out, **options)
        if fault == "one element":
            out[-1] *= 1.05  # as a lost product would
        elif fault == "not written":
            out[0, 3] = torch.nan
        else:
            out.as_strided((1, 1), (1, 1), out.numel()).zero_()

    monkeypatch.setattr(verify, "gemm", wrong)
    verdicts = verify.verify_bundle(bundle, (9, 0), device="cpu", quick=True)
    dense = {kernel.name for kernel in PLAN.kernels if not kernel.config.indexed}
    assert {one.kernel for one in verdicts if not one.passed} == dense


def test_a_crash_names_the_kernel_and_the_problem(
    bundle: Bundle, verify: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(verify, "gemm", crash)
    with pytest.raises(CudaError, match=r"marlin_\w+_dense_sm90a crashed on .*m=1: illegal memory access"):
        verify.verify_bundle(bundle, (9, 0), device="cpu")


def test_a_bundle_for_other_gpus_is_refused(bundle: Bundle, verify: Any) -> None:
    with pytest.raises(ArchError, match=r"kernels for 9\.0a; this GPU is 8\.0"):
        verify.verify_bundle(bundle, (8, 0), device="cpu")


def test_without_a_gpu_the_command_says_what_is_missing(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle.folder)]) == 1
    assert "verify needs" in capsys.readouterr().err
    assert main(["verify", str(bundle.folder / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
