"""Which Marlin kernels a release instantiates for a list of targets, in the order of its own generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from .job import Job
from .release import ACTIVATIONS, MarlinFormat, MarlinRelease, MarlinSet, MarlinTile, matches


class Instantiation(NamedTuple):
    """One explicit instantiation of the tree's `Marlin<...>` template.

    Args:
        format: The weight format it belongs to, a name of the release's data file.
        a: Activations; with `b c s` a name of a `vllm::ScalarType` constant.
        b: Weights.
        c: Output.
        s: Scales.
        threads: Threads of one CTA.
        thread_m_blocks: Blocks of 16 tokens; with `thread_n_blocks thread_k_blocks` the CTA tile.
        thread_n_blocks: Blocks of 16 output features.
        thread_k_blocks: Blocks of 16 input features.
        m_block_size_8: Whether the one token block has 8 tokens.
        stages: Depth of the shared-memory pipeline.
        group_blocks: Blocks of 16 weights along k that share a scale; -1: a whole channel, 0: act-order.
        is_zp_float: Whether zero points are floating-point numbers.
    """

    format: str
    a: str
    b: str
    c: str
    s: str
    threads: int
    thread_m_blocks: int
    thread_n_blocks: int
    thread_k_blocks: int
    m_block_size_8: bool
    stages: int
    group_blocks: int
    is_zp_float: bool = False

    @property
    def arguments(self) -> str:
        """The template arguments, in C++."""
        return (
            f"vllm::{self.a}.id(), vllm::{self.b}.id(), vllm::{self.c}.id(), vllm::{self.s}.id(), "
            f"{self.threads}, {self.thread_m_blocks}, {self.thread_n_blocks}, {self.thread_k_blocks}, "
            f"{cpp(self.m_block_size_8)}, {self.stages}, {self.group_blocks}, {cpp(self.is_zp_float)}"
        )

    @property
    def activation(self) -> str:
        """The activations as `--act` takes them."""
        return next(name for name, type_name in ACTIVATIONS.items() if type_name == self.a)

    @property
    def group_size(self) -> int:
        """Weights along k that share a scale, as `--group-size` takes them."""
        return group_size(self.group_blocks)


def group_size(group_blocks: int) -> int:
    """Return the weights along k that share a scale; -1: a whole channel, 0: act-order."""
    return group_blocks * 16 if group_blocks > 0 else group_blocks


def cpp(value: bool | int) -> str:
    """Spell a Boolean or an integer in C++."""
    return str(value).lower()


@dataclass(frozen=True)
class KernelFile:
    """One `.cu` file.

    Args:
        name: Its name, such as `sm80_kernel_float16_u4_float16.cu`.
        kernels: Its instantiations, in order.
    """

    name: str
    kernels: tuple[Instantiation, ...]


@dataclass(frozen=True)
class MarlinPlan:
    """The kernels of one folder.

    Args:
        files: In the selector's order.
        fp8_built: Whether kernels with FP8 activations are among them.
        dropped: What a narrowed plan left out, in the order of the full plan.
    """

    files: tuple[KernelFile, ...]
    fp8_built: bool
    dropped: tuple[Instantiation, ...] = ()

    @property
    def kernels(self) -> tuple[Instantiation, ...]:
        """All instantiations, in the selector's order."""
        return tuple(kernel for file in self.files for kernel in file.kernels)

    def narrowed(self, keep: Callable[[Instantiation], bool]) -> MarlinPlan:
        """Return the plan with only the kernels that `keep` accepts; files left empty disappear."""
        files = (replace(file, kernels=tuple(filter(keep, file.kernels))) for file in self.files)
        left_out = tuple(kernel for kernel in self.kernels if not keep(kernel))
        return replace(
            self, files=tuple(file for file in files if file.kernels), dropped=self.dropped + left_out
        )


def plan_marlin(job: Job) -> MarlinPlan:
    """Plan the kernels of a dense or MoE Marlin folder.

    Args:
        job: Its targets decide which sets exist and whether FP8 activations are built.
    """
    release = job.release.marlin
    capabilities = {arch.capability for arch in job.archs}
    fp8_built = any(matches(capability, release.fp8.archs) for capability in capabilities)
    files: dict[str, list[Instantiation]] = {}
    for one in release.sets:
        if not any(matches(capability, one.archs) for capability in capabilities):
            continue
        for form in release.formats:
            for a, c in form.types:
                if one.has(a, c) and (fp8_built or a != release.fp8.activation):
                    kernels = files.setdefault(file_name(release, one, a, form.weight, c), [])
                    kernels += _instantiate(form, one, release.tiles, a, c)
    return MarlinPlan(tuple(KernelFile(name, tuple(kernels)) for name, kernels in files.items()), fp8_built)


def file_name(release: MarlinRelease, one: MarlinSet, a: str, b: str, c: str) -> str:
    """Return the name of the file that holds a set's kernels of one triple of types."""
    prefix = release.fp8.prefix if a == release.fp8.activation else one.prefix
    return f"{prefix}_kernel_{a[1:]}_{b[1:]}_{c[1:]}.cu".lower()


def all_file_names(release: MarlinRelease) -> Iterator[str]:
    """Give every file name that some list of targets leads to."""
    for one in release.sets:
        for form in release.formats:
            for a, c in form.types:
                if one.has(a, c):
                    yield file_name(release, one, a, form.weight, c)


def _instantiate(
    form: MarlinFormat, one: MarlinSet, tiles: Iterable[MarlinTile], a: str, c: str
) -> Iterator[Instantiation]:
    for group_blocks in form.group_blocks:
        for m_blocks in form.m_blocks:
            for tile in tiles:
                if m_blocks in tile.m_blocks:
                    yield Instantiation(
                        format=form.name,
                        a=a,
                        b=form.weight,
                        c=c,
                        s=form.scale or c,
                        threads=tile.threads,
                        thread_m_blocks=max(int(m_blocks), 1),
                        thread_n_blocks=tile.thread_n // 16,
                        thread_k_blocks=tile.thread_k // 16,
                        m_block_size_8=m_blocks < 1,
                        stages=one.stages,
                        group_blocks=group_blocks,
                    )
