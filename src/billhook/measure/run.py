"""Measure contestants on workloads: prepare, check, time in turn, record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from .contestant import Bind, Contestant, Refusal, attempt
from .inputs import Inputs, make_inputs, make_weights, reference
from .machine import sm_clock_mhz
from .record import Case, Machine, Record
from .roofline import Peak, floor_us, moved_bytes, operations
from .timing import Captured, calls_for, capture, interleave, summarize, worst_error
from .workload import Workload

if TYPE_CHECKING:
    import torch

MOST_ERROR = 0.01  # relative; rounding to bf16 alone gives 0.002


@dataclass(frozen=True)
class Run:
    """What all measurements of one run share.

    Args:
        device: The GPU.
        stream: Where graphs are captured.
        machine: Its description.
        peak: What it sustains.
        rounds: Graph launches timed per contestant and problem.
        rest: How long the GPU idles before a contestant, as `timing.interleave` has it.
        seed: Of weights, activations and routing.
        started: ISO 8601, UTC; names the run.
    """

    device: torch.device
    stream: torch.cuda.Stream
    machine: Machine
    peak: Peak
    rounds: int
    rest: float
    seed: int
    started: str


def begin(device: torch.device, machine: Machine, peak: Peak, *, rounds: int, rest: float, seed: int) -> Run:
    """Begin a run now.

    Args:
        device: The GPU.
        machine: Its description.
        peak: What it sustains.
        rounds: Graph launches timed per contestant and problem.
        rest: How long the GPU idles before a contestant, as `timing.interleave` has it.
        seed: Of weights, activations and routing.
    """
    import torch

    return Run(device, torch.cuda.Stream(device), machine, peak, rounds, rest, seed, utc_now())


def utc_now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def measure(
    run: Run, workload: Workload, contestants: Sequence[Contestant], done: Callable[[list[Record]], None]
) -> None:
    """Measure one layer at all its token counts.

    Args:
        run: What the run shares.
        workload: The layer.
        contestants: In the order of the first round.
        done: Told of each problem's records as soon as they exist.

    Raises:
        CudaError: A contestant left the GPU in an error state.
    """
    import torch

    weights = make_weights(workload, run.seed, run.device)
    l2_bytes = run.machine.l2_bytes
    cases = [make_inputs(workload, tokens, run.seed, l2_bytes, run.device) for tokens in workload.tokens]
    binds: dict[str, Bind | Refusal] = {}
    for contestant in contestants:
        binds[contestant.name] = attempt(contestant.name, partial(contestant.prepare, weights, cases))
    for inputs in cases:
        expected = reference(weights, inputs)
        done(_measure_case(run, workload, inputs, expected, binds))
        torch.cuda.empty_cache()  # the memory of graphs that are gone serves no others until it is given back


def _measure_case(
    run: Run, workload: Workload, inputs: Inputs, expected: torch.Tensor, binds: dict[str, Bind | Refusal]
) -> list[Record]:
    problem, hit = inputs.problem, inputs.experts_hit
    floor = floor_us(problem, run.peak, hit)
    calls = calls_for(floor, inputs.copies)
    captured: dict[str, Captured] = {}
    errors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for name, bind in binds.items():
        if isinstance(bind, Refusal):
            skipped[name] = bind.reason
            continue
        outcome = attempt(name, partial(_try, bind, inputs, calls, run.stream, expected))
        if isinstance(outcome, Refusal):
            skipped[name] = outcome.reason
            continue
        captured[name], errors[name] = outcome
        if not errors[name] <= MOST_ERROR:  # NaN is wrong too
            skipped[name] = f"wrong: relative error {errors[name]:.3g} is above {MOST_ERROR}"
            del captured[name]
    samples = dict(zip(captured, interleave(list(captured.values()), run.rounds, run.rest), strict=True))
    clock = sm_clock_mhz(run.device)
    case = _describe(workload, inputs)
    return [
        Record(
            run=run.started,
            date=utc_now(),
            machine=run.machine,
            case=case,
            contestant=name,
            floor_us=floor,
            bytes=moved_bytes(problem, hit),
            flops=operations(problem),
            bandwidth=run.peak.bandwidth,
            peak_flops=run.peak.of(problem),
            times=summarize(samples[name], calls, inputs.copies) if name in samples else None,
            skipped=skipped.get(name, ""),
            error=errors[name] if math.isfinite(errors.get(name, math.nan)) else None,
            kernel=captured[name].launch.kernel if name in captured else "",
            sm_clock_mhz=clock,
        )
        for name in binds
    ]


def _try(
    bind: Bind, inputs: Inputs, calls: int, stream: torch.cuda.Stream, expected: torch.Tensor
) -> tuple[Captured, float]:
    graph = capture(bind(inputs), calls, inputs.copies, stream)
    return graph, worst_error(graph, expected)


def _describe(workload: Workload, inputs: Inputs) -> Case:
    problem = inputs.problem
    return Case(
        layer=workload.name,
        tokens=inputs.tokens,
        m=problem.m,
        n=problem.n,
        k=problem.k,
        types=str(problem.types),
        group_size=problem.group_size,
        num_experts=problem.num_experts,
        top_k=problem.top_k,
        experts_hit=inputs.experts_hit,
        format=workload.held.name,
    )
