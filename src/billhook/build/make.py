"""Plan to bundle: compile everything that a plan asks for, and write the bundle if all of it compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..arch import parse
from ..config import parse_types
from ..errors import CompileError
from ..plan import Plan
from .artifact import Artifact, Unit
from .bundle import Bundle, check_target, write_bundle
from .cache import Cache, cache_folder
from .compile import compile_units, default_jobs, kernel_unit, support_unit
from .manifest import Input


@dataclass(frozen=True)
class Outcome:
    """How a build went.

    Args:
        artifacts: What compiled, in the plan's order.
        failures: Kernel name -> why it did not compile.
        bundle: What was written; None if anything failed.
    """

    artifacts: list[Artifact]
    failures: dict[str, CompileError]
    bundle: Bundle | None


def plan_units(plan: Plan) -> list[Unit]:
    """Return what must be compiled for a plan: its kernels, and what stands beside them."""
    kernels = [kernel_unit(kernel.config) for kernel in plan.kernels]
    routed = dict.fromkeys(entry.arch for entry in plan.dispatch if entry.num_experts)
    grouped = dict.fromkeys(kernel.arch for kernel in plan.kernels if kernel.config.grouped)
    packed = dict.fromkeys(entry.arch for entry in plan.dispatch)
    quantized = dict.fromkeys(entry.arch for entry in plan.dispatch if parse_types(entry.types).a.bits == 8)
    needed = {"route": routed, "group": grouped, "pack": packed, "quantize": quantized}
    return kernels + [support_unit(part, parse(arch)) for part, archs in needed.items() for arch in archs]


def build_plan(
    plan: Plan,
    folder: str | Path,
    *,
    jobs: int | None = None,
    cache: Cache | None = None,
    inputs: Iterable[Input] = (),
    options: Mapping[str, str] | None = None,
    done: Callable[[Unit, Artifact | CompileError], None] = lambda unit, outcome: None,
) -> Outcome:
    """Compile a plan's kernels and write them as a bundle.

    Kernels that compiled stay in the cache, whatever else goes wrong.

    Args:
        plan: What to build.
        folder: Where the bundle goes; absent, empty, or an older bundle.
        jobs: Compilations at a time; as many as there are processors if None.
        cache: Where compiled kernels are kept; the user's cache folder if None.
        inputs: The files that the plan was made from.
        options: The request's options, for the bundle's reader.
        done: Told of each outcome as it comes.

    Raises:
        BundleError: `folder` holds something else; nothing was compiled.
        ToolchainError: NVRTC is missing, or too old for a target.
        StorageError: The cache or the bundle cannot be written.
    """
    check_target(folder)
    artifacts, failures = compile_units(
        plan_units(plan), cache or Cache(cache_folder()), jobs or default_jobs(), done
    )
    bundle = None if failures else write_bundle(folder, plan, artifacts, inputs, options)
    return Outcome(artifacts, failures, bundle)
