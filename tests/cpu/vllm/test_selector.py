"""Both forms of `kernel_selector.h`, compiled against a stub tree, select and refuse the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from stubs.marlin_tree import build

from billhook.arch import parse_list
from billhook.vllm import marlin
from billhook.vllm.job import Job
from billhook.vllm.release import load_release

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the selectors")


def small_job(archs: str) -> Job:
    """A release cut down to formats that compile in a few seconds, two of them sharing their files."""
    release = load_release("0.33")
    formats = tuple(form for form in release.marlin.formats if form.name in ("nvfp4", "mxfp4"))
    cut = msgspec.structs.replace(release, marlin=msgspec.structs.replace(release.marlin, formats=formats))
    return Job("marlin-moe", cut, tuple(parse_list(archs)))


def ask(program: Path) -> dict[str, int]:
    answer = subprocess.run([program, "agree"], check=True, capture_output=True, text=True).stdout
    counts: dict[str, int] = json.loads(answer)
    return counts


def test_forms_agree_where_everything_is_built(tmp_path: Path) -> None:
    job = small_job("7.5,8.9")
    plan = marlin.plan(job)
    counts = ask(build(tmp_path, job, plan))
    assert counts["different"] == counts["refused"] == 0
    assert counts["right"] == len(plan.kernels) == 72
    assert counts["asked"] > counts["selected"] > len(plan.kernels)


def test_forms_agree_on_errors(tmp_path: Path) -> None:
    job = small_job("7.5,8.0")
    full = marlin.plan(job)
    plan = full.narrowed(lambda kernel: kernel.thread_m_blocks == 1)
    counts = ask(build(tmp_path, job, plan))
    assert counts["different"] == 0
    assert counts["right"] == len(plan.kernels) == 24
    # Each kernel left out, and FP8 activations, which this target list does not build.
    assert counts["refused"] > len(plan.dropped) == 36
