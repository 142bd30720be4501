"""The Marlin families of a vLLM tree, dense and MoE: job -> files."""

from __future__ import annotations

from pathlib import Path

from ..emit.source import SourceFile
from . import selector, text
from .job import NARROWING_CODE, Job, package_files
from .marlin_plan import MarlinPlan, all_file_names, plan_marlin

SELECTOR = "kernel_selector.h"


def plan(job: Job) -> MarlinPlan:
    """Plan the kernels of a job, narrowed to its requests if it has any."""
    full = plan_marlin(job)
    if not job.narrowing:
        return full
    from .narrow import narrow

    return narrow(full, job)


def names(job: Job) -> list[str]:
    """Return the selector's name, then those of the `.cu` files in its order."""
    return [SELECTOR, *(file.name for file in plan(job).files)]


def render(job: Job) -> list[SourceFile]:
    """Render the selector and the `.cu` files, in the order of `names`."""
    return render_plan(plan(job), job)


def render_plan(planned: MarlinPlan, job: Job) -> list[SourceFile]:
    """Render the selector and the `.cu` files of a plan."""
    kernels = [
        SourceFile(file.name, text.render("marlin_kernels.cu.jinja", file=file)) for file in planned.files
    ]
    return [SourceFile(SELECTOR, render_selector(planned, job)), *kernels]


def render_selector(planned: MarlinPlan, job: Job) -> str:
    """Return the text of `kernel_selector.h` in the form that the job asks for."""
    release = job.release.marlin
    if job.selector == "switch":
        tree = selector.switch(planned, release.fp8)
        return text.render("marlin_selector_switch.h.jinja", tree=tree, check=release.check)
    branches = selector.chain(planned, release.fp8)
    return text.render("marlin_selector_chain.h.jinja", branches=branches, check=release.check)


def inputs(job: Job) -> list[Path]:
    """Return the code, templates and data that decide what is rendered."""
    narrowing = NARROWING_CODE if job.narrowing else ()
    code = ("job.py", "marlin.py", "marlin_plan.py", "release.py", "selector.py", "text.py")
    return [
        job.release.data_file,
        *sorted(text.TEMPLATES.glob("marlin_*.jinja")),
        *package_files(
            "arch.py",
            "emit/environment.py",
            "emit/manifest.py",
            *(f"vllm/{name}" for name in code),
            *narrowing,
        ),
        *job.narrowing.configs,
    ]


def original_names(job: Job) -> frozenset[str]:
    """Return every file name that the release's own generator can write."""
    return frozenset([SELECTOR, *all_file_names(job.release.marlin)])


def original_marker(job: Job) -> str:
    """Return text in the head of every file of the release's own generator."""
    return job.release.marlin.marker
