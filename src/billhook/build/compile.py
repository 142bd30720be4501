"""Sources to artifacts: through the cache, one at a time or many at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from .. import families
from ..arch import Arch
from ..config import KernelConfig
from ..emit import emit, emit_support, support_name
from ..errors import CompileError
from .artifact import Artifact, Unit
from .cache import Cache, cache_folder, cache_key
from .headers import included_headers
from .nvrtc import compile_options, compile_text
from .resources import read_resources, read_warnings
from .toolchain import find_nvrtc


def kernel_unit(config: KernelConfig) -> Unit:
    """Return what must be compiled for a kernel."""
    (source,) = emit([config])
    return Unit(
        name=config.name,
        kind="gemm",
        arch=config.arch,
        source=source,
        threads=families.threads(config),
        dynamic_shared=families.shared_memory(config),
    )


def support_unit(part: str, arch: Arch) -> Unit:
    """Return what must be compiled so that MoE layers can be routed, weights packed and the like on `arch`.

    Args:
        part: A name of `emit.SUPPORT`.
        arch: The GPU target.
    """
    return Unit(name=support_name(part, arch), kind="support", arch=arch, source=emit_support(part, arch))


def compile_kernel(config: KernelConfig, cache: Cache | None = None) -> Artifact:
    """Compile one kernel, or take it from the cache.

    Args:
        config: The kernel; it must be legal (`families.illegal`).
        cache: Where compiled kernels are kept; the user's cache folder by default.

    Raises:
        InputError: As `compile_options`.
        CompileError: It does not compile; `log` holds the compiler's words.
        ToolchainError: NVRTC is missing, or too old for the target.
        StorageError: The cache cannot be read or written.
    """
    return compile_unit(kernel_unit(config), cache or Cache(cache_folder()))


def compile_support(part: str, arch: Arch, cache: Cache | None = None) -> Artifact:
    """Compile the kernels of a part that stands beside GEMMs for `arch`, or take them from the cache.

    Args:
        part: A name of `emit.SUPPORT`.
        arch: The GPU target.
        cache: As in `compile_kernel`.

    Raises: As `compile_kernel`.
    """
    return compile_unit(support_unit(part, arch), cache or Cache(cache_folder()))


def compile_unit(unit: Unit, cache: Cache) -> Artifact:
    """Compile one source, or take it from the cache.

    Raises: As `compile_kernel`.
    """
    headers = included_headers(unit.source.text)
    compiler = f"NVRTC {find_nvrtc().version}"
    key = cache_key(unit.source.text, headers, compile_options(unit.arch), compiler, ptx=unit.arch.ptx)
    known = cache.get(key)
    compiled = known or compile_text(unit.source.path, unit.source.text, headers, unit.arch)
    artifact = Artifact(
        unit=unit,
        headers=headers,
        key=key,
        compiler=compiler,
        cubin=compiled.cubin,
        ptx=compiled.ptx,
        entries=read_resources(compiled.log),
        warnings=read_warnings(compiled.log),
        seconds=compiled.seconds,
        cached=known is not None,
    )
    if known is None:
        cache.put(key, compiled)
    return artifact


def default_jobs() -> int:
    """Return the number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile_units(
    units: Sequence[Unit],
    cache: Cache,
    jobs: int,
    done: Callable[[Unit, Artifact | CompileError], None] = lambda unit, outcome: None,
) -> tuple[list[Artifact], dict[str, CompileError]]:
    """Compile many sources in parallel; one that fails does not stop the others.

    Args:
        units: What to compile.
        cache: Where compiled kernels are kept; each is stored as soon as it is ready.
        jobs: Compilations at a time.
        done: Told of each outcome as it comes, in the calling thread.

    Returns:
        The artifacts in the order of `units`, and unit name -> error for those that did not compile.

    Raises:
        InputError: As `compile_options`; nothing more is begun.
        ToolchainError: As `compile_kernel`; nothing more is begun.
        StorageError: As `compile_kernel`; nothing more is begun.
        KeyboardInterrupt: Compilations under way are finished and stored first.
    """
    find_nvrtc()  # once, in this thread, so that a missing compiler is told once
    artifacts: dict[str, Artifact] = {}
    failures: dict[str, CompileError] = {}
    with ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="compile") as pool:
        futures = {pool.submit(compile_unit, unit, cache): unit for unit in units}
        try:
            for future in as_completed(futures):
                unit = futures[future]
                try:
                    artifacts[unit.name] = future.result()
                except CompileError as error:
                    failures[unit.name] = error
                done(unit, failures.get(unit.name) or artifacts[unit.name])
        finally:
            pool.shutdown(cancel_futures=True)
    return [artifacts[unit.name] for unit in units if unit.name in artifacts], failures
