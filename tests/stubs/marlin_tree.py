"""Compile a generated Marlin folder with the host compiler, against a stub of its tree."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from billhook.vllm import marlin
from billhook.vllm.job import Job
from billhook.vllm.marlin_plan import Instantiation, MarlinPlan, cpp

STUB = Path(__file__).parent / "marlin"
TYPES = ["kFloat16", "kBFloat16", "kS8", "kFE4M3fn", "kFE2M1f", "kFE8M0fnu", "kU4", "kU4B8", "kU8B128", "kU8"]
# Beside the values of the kernels, one that no kernel has.
STRANGERS = {
    "threads": 64,
    "thread_m_blocks": 5,
    "thread_n_blocks": 2,
    "thread_k_blocks": 16,
    "stages": 3,
    "group_blocks": 3,
}


def build(folder: Path, job: Job, plan: MarlinPlan, optimize: str = "-O0") -> Path:
    """Compile both selectors and the kernels of a plan into one program.

    Args:
        folder: An empty folder to work in.
        job: The release and targets.
        plan: The kernels, perhaps narrowed.
        optimize: The compiler's optimization flag for the selectors.

    Returns:
        The program; see `stubs/marlin/select.cpp`.
    """
    for form in ("chain", "switch"):
        (folder / form).mkdir()
        text = marlin.render_selector(plan, replace(job, selector=form))
        (folder / form / "kernel_selector.h").write_text(text)
    wanted = {file.name for file in plan.files}
    kernels = [file.text for file in marlin.render_plan(plan, job) if file.path in wanted]
    (folder / "kernels.cpp").write_text("\n".join(kernels))
    (folder / "domain.h").write_text(domain(plan))
    include = [f"-I{STUB}", f"-I{folder}"]
    compile_one = ["g++", "-std=c++17", "-Wall", "-Werror", *include]
    subprocess.run(
        [*compile_one, "-O0", "-c", folder / "kernels.cpp", "-o", folder / "kernels.o"], check=True
    )
    program = folder / "select"
    subprocess.run(
        [*compile_one, optimize, STUB / "select.cpp", folder / "kernels.o", "-o", program], check=True
    )
    return program


def domain(plan: MarlinPlan) -> str:
    """Write `domain.h`: all types, those of every kernel, the values of each number, and the kernels."""
    every = [*plan.kernels, *plan.dropped]
    quadruples = dict.fromkeys((kernel.a, kernel.b, kernel.c, kernel.s) for kernel in every)
    lines = [
        f"vllm::ScalarType const all_types[] = {{{', '.join(f'vllm::{name}' for name in TYPES)}}};",
        f"std::vector<Query> const type_quadruples = {{{', '.join(map(_types, quadruples))}}};",
    ]
    for name, stranger in STRANGERS.items():
        values = sorted({stranger, *(getattr(kernel, name) for kernel in every)})
        lines.append(f"int const all_{name}[] = {{{', '.join(map(str, values))}}};")
    lines.append("struct Known { Query query; Kernel kernel; };")
    known = ",\n".join(_known(plan.kernels))
    lines.append(f"Known const kernels[] = {{\n{known}}};")
    return "\n".join(lines)


def _types(names: Iterable[str]) -> str:
    return "{" + ", ".join(f"vllm::{name}" for name in names) + ", 0, 0, 0, 0, false, 0, 0, false}"


def _known(kernels: Iterable[Instantiation]) -> list[str]:
    return [
        "{{"
        + ", ".join(f"vllm::{name}" for name in (kernel.a, kernel.b, kernel.c, kernel.s))
        + "".join(f", {cpp(value)}" for value in kernel[5:])
        + f"}}, &Marlin<{kernel.arguments}>}}"
        for kernel in kernels
    ]
