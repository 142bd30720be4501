"""The Machete family of a vLLM tree: job -> files, and the documented names of its generator."""

from __future__ import annotations

from pathlib import Path

from ...emit.source import SourceFile
from ..job import NARROWING_CODE, Job, package_files
from ..rule_file import DEFAULT
from .cutlass import (
    DataType,
    EpilogueScheduleType,
    MixedInputKernelScheduleType,
    TileSchedulerType,
    VLLMDataType,
)
from .types import (
    ImplConfig,
    PrepackTypeConfig,
    ScheduleConfig,
    TypeConfig,
    generate_sch_sig,
    generate_terse_sch_sig,
    generate_type_option_name,
    generate_type_signature,
)

__all__ = [
    "DataType",
    "EpilogueScheduleType",
    "ImplConfig",
    "MixedInputKernelScheduleType",
    "PrepackTypeConfig",
    "ScheduleConfig",
    "TileSchedulerType",
    "TypeConfig",
    "VLLMDataType",
    "generate_sch_sig",
    "generate_terse_sch_sig",
    "generate_type_option_name",
    "generate_type_signature",
    "inputs",
    "names",
    "original_marker",
    "original_names",
    "render",
]

_CODE = (
    "vllm/heuristic.py",
    "vllm/heuristic_lint.py",
    "vllm/job.py",
    "vllm/release.py",
    "vllm/rule_file.py",
    "vllm/text.py",
    "vllm/toml_positions.py",
    *(f"vllm/machete/{name}.py" for name in ("__init__", "cutlass", "emit", "plan", "types")),
)


def names(job: Job) -> list[str]:
    """Return the name of the dispatch file, then those of the others."""
    from .emit import DISPATCH, PREPACK, part_name
    from .plan import deal, make_plan

    plan = make_plan(job)
    return [DISPATCH, PREPACK, *(part_name(index) for index, _ in enumerate(deal(plan.impls, plan.parts)))]


def render(job: Job) -> list[SourceFile]:
    """Render the dispatch, prepacking and implementation files, in the order of `names`."""
    from .emit import emit
    from .plan import make_plan

    return emit(make_plan(job), job.release.machete)


def inputs(job: Job) -> list[Path]:
    """Return the code, templates and data that decide what is rendered."""
    package = Path(__file__).parents[2]
    return [
        job.release.data_file,
        package / "catalog" / "vllm" / "machete.toml",
        job.heuristic or DEFAULT,
        *sorted((package / "emit" / "templates" / "vllm").glob("machete_*.jinja")),
        *package_files(*_CODE, *(NARROWING_CODE if job.narrowing else ())),
        *job.narrowing.configs,
    ]


def original_names(job: Job) -> frozenset[str]:
    """Return every file name that the release's own generator can write."""
    from .emit import DISPATCH, PREPACK, part_name
    from .plan import load_catalog

    return frozenset([DISPATCH, PREPACK, *(part_name(index) for index in range(load_catalog().parts))])


def original_marker(job: Job) -> str:
    """Return text in every file of the release's own generator."""
    return job.release.machete.marker
