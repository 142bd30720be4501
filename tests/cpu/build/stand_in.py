"""Stand-ins for tests of what is done with kernels: some compile in a moment, some were never compiled."""

from __future__ import annotations

from billhook import arch, plan
from billhook.build import Artifact, Resources, Unit, plan_units
from billhook.config import GemmTypes, Problem
from billhook.dtypes import BF16, U4B8
from billhook.emit import SourceFile

_TEXT = 'extern "C" __global__ void {name}(float* out) {{ out[threadIdx.x] = {value}; }}\n'


def unit(name: str, value: str = "1.0f", target: str = "9.0a") -> Unit:
    """Return a kernel that stores `value`; a value that is no C++ gives one that does not compile."""
    source = SourceFile(f"{name}.cu", _TEXT.format(name=name, value=value))
    return Unit(name, "support", arch.parse(target), source)


def small_plan(target: str = "9.0a", max_tokens: int = 40) -> plan.Plan:
    """Return a plan for one dense and one MoE problem."""
    types = GemmTypes(BF16, U4B8, BF16, BF16)
    problems = [Problem(1, 512, 512, types, 128), Problem(1, 512, 512, types, 128, num_experts=8, top_k=2)]
    return plan.plan_problems(problems, [arch.parse(target)], max_tokens)


def artifacts(planned: plan.Plan) -> list[Artifact]:
    """Return artifacts of a plan's units that no compiler has seen."""
    return [
        Artifact(
            unit=one,
            headers={"billhook/kernel/stand_in.cuh": "#pragma once\n"},
            key="0" * 64,
            compiler="none 1.0",
            cubin=f"machine code of {one.name}".encode(),
            ptx="// ptx\n" if one.arch.ptx else "",
            entries={one.name: Resources(100, 0, 0, 0, 0)},
            warnings=[],
            seconds=0.25,
            cached=False,
        )
        for one in plan_units(planned)
    ]
