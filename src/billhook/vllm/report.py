"""What a narrowed generation keeps and drops, file by file, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .job import Job
from .marlin_plan import Instantiation, plan_marlin
from .narrow import (
    Reach,
    Request,
    gemms,
    most_m_blocks,
    narrow,
    requests_of,
    why_unwanted,
)
from .release import ACTIVATIONS


@dataclass(frozen=True)
class Part:
    """One file of a family; for Machete, whose files are dealt anew, one type combination.

    Args:
        name: The file's name, or the types.
        kept: Kernels that are generated.
        dropped: Reason -> kernels left out for it.
    """

    name: str
    kept: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Report:
    """What becomes of one family.

    Args:
        family: A key of `job.FAMILIES`.
        parts: In the order of generation.
        unserved: Requests that not even the full set has a kernel for.
    """

    family: str
    parts: tuple[Part, ...]
    unserved: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Kernels that are generated."""
        return sum(part.kept for part in self.parts)

    @property
    def dropped(self) -> int:
        """Kernels that are left out."""
        return sum(count for part in self.parts for count in part.dropped.values())


def report(job: Job) -> Report:
    """Tell what a job keeps and drops.

    Raises:
        InputError: A name that the release does not know.
        ConfigError: A model config or a rule file makes no sense.
    """
    return _report_machete(job) if job.family == "machete" else _report_marlin(job)


def _report_marlin(job: Job) -> Report:
    full = plan_marlin(job)
    asked = requests_of(job)
    kept = set(narrow(full, job).kernels) if job.narrowing else set(full.kernels)
    parts = []
    for file in full.files:
        dropped = [kernel for kernel in file.kernels if kernel not in kept]
        reasons = Counter(why_dropped(kernel, asked, job) for kernel in dropped)
        parts.append(Part(file.name, len(file.kernels) - len(dropped), dict(reasons)))
    reach = Reach(full.kernels, job.release, job.archs)
    unserved = (_describe(request) for request in asked or () if not reach.of(request))
    return Report(job.family, tuple(parts), tuple(dict.fromkeys(unserved)))


def why_dropped(kernel: Instantiation, asked: Sequence[Request] | None, job: Job) -> str:
    """Return why a narrowed generation leaves a kernel out, in words.

    Args:
        kernel: One that is left out.
        asked: `requests_of(job)`.
        job: The generation.
    """
    if asked is None:
        return why_unwanted(kernel, job.narrowing) or ""
    return next(_reasons(kernel, asked, job))


def _reasons(kernel: Instantiation, asked: Sequence[Request], job: Job) -> Iterator[str]:
    """Give what keeps a kernel from being reached, the plainest reason first."""
    if not asked:
        yield f"no model has {'MoE' if job.family == 'marlin-moe' else 'dense quantized'} layers"
    same_format = [one for one in asked if one.format == kernel.format]
    if not same_format:
        yield f"no layer is stored as {kernel.format}"
    types = (kernel.activation, kernel.c)
    same_types = [one for one in same_format if (one.activation, ACTIVATIONS[one.output]) == types]
    if not same_types:
        yield f"no layer has {kernel.activation} activations and {kernel.c[1:].lower()} outputs"
    stored = [gemm for one in same_types for gemm in gemms(one, job.release)]
    shapes = [gemm for gemm in stored if gemm.group_blocks == kernel.group_blocks]
    if not shapes:
        yield f"no layer has group size {kernel.group_size}"
    tile_k, tile_n = kernel.thread_k_blocks * 16, kernel.thread_n_blocks * 16
    if all(gemm.k % tile_k or gemm.n % tile_n for gemm in shapes):
        yield f"its tile (n {tile_n}, k {tile_k}) divides no layer"
    if kernel.thread_m_blocks > max(most_m_blocks(one.max_tokens, one.routing) for one in same_types):
        tokens = job.narrowing.max_tokens
        yield f"--max-tokens {tokens} never fills {kernel.thread_m_blocks} blocks of rows of these layers"
    yield "the host chooses other tiles for these layers"


def _describe(request: Request) -> str:
    group = "any" if request.group_size is None else request.group_size
    types = f"{request.format}, {request.activation}, group size {group}"
    return f"{request.name} (n {request.n}, k {request.k}, {types})"


def _report_machete(job: Job) -> Report:
    from .machete import generate_type_signature
    from .machete.plan import Impl, make_plan

    def why(impl: Impl) -> str:
        if impl.config.schedules:
            return "the heuristic never chooses its schedule for these layers and tokens"
        return f"no request has {impl.format} weights and {impl.activation} activations"

    def parts(impls: Sequence[Impl]) -> Iterator[Part]:
        for impl in impls:
            dropped = {why(impl): len(impl.dropped)} if impl.dropped else {}
            yield Part(generate_type_signature(impl.config.types), len(impl.config.schedules), dropped)

    plan = make_plan(job)
    return Report(job.family, (*parts(plan.impls), *parts(plan.left_out)))
