"""The two sources of kernels: compilation on first use, and bundles."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from .. import arch as archs
from ..arch import Arch
from ..build.bundle import Bundle
from ..build.compile import compile_kernel, compile_support
from ..catalog import Catalog, load
from ..config import KernelConfig, Problem
from ..driver import native_arch
from ..emit import SUPPORT, support_name
from ..errors import BundleError, UnsupportedError
from ..families import MULTIPROCESSORS, illegal, unserved
from ..select import candidates, select


class Source(Protocol):
    """Chooses kernels and holds their machine code."""

    def choose(
        self,
        problem: Problem,
        capability: tuple[int, int],
        block_m: int,
        multiprocessors: int = MULTIPROCESSORS,
    ) -> KernelConfig:
        """Return the kernel for a problem.

        Args:
            problem: What is asked.
            capability: The GPU's compute capability.
            block_m: Rows that the kernel must take at a time, since MoE rows are routed so; 0 for any.
            multiprocessors: The GPU's; a bundle's tables are made for those that it was planned for.

        Raises:
            UnsupportedError: No kernel serves it.
        """

    def cubin(self, config: KernelConfig) -> bytes:
        """Return a kernel's machine code."""

    def support(self, part: str, capability: tuple[int, int]) -> tuple[Arch, bytes]:
        """Return the machine code of kernels that route, group, pack or quantize, and its target.

        Args:
            part: A name of `emit.SUPPORT`.
            capability: The GPU's compute capability.
        """


class Compiler:
    """Compiles kernels on first use, through the content-addressed cache; a catalog's rules choose.

    Args:
        catalog: The installed one if None.
    """

    def __init__(self, catalog: Catalog | None = None) -> None:
        self.catalog = catalog or load()
        self._for_gpus: dict[int, Catalog] = {}

    def choose(
        self,
        problem: Problem,
        capability: tuple[int, int],
        block_m: int,
        multiprocessors: int = MULTIPROCESSORS,
    ) -> KernelConfig:
        """As `Source.choose`."""
        catalog = self._for_gpus.get(multiprocessors)
        if catalog is None:
            catalog = self._for_gpus[multiprocessors] = self.catalog.on(multiprocessors)
        arch = native_arch(capability)
        chosen = select(problem, arch, catalog).config
        if block_m in (0, chosen.tile.tile_m):
            return chosen
        legal = [config for config, why_not in candidates(problem, arch, catalog) if why_not is None]
        return _with_rows(legal, chosen, block_m, "the catalog")

    def cubin(self, config: KernelConfig) -> bytes:
        """As `Source.cubin`."""
        why_not = illegal(config)
        if why_not is not None:
            raise UnsupportedError(f"no such kernel as {config}: {why_not}")
        return compile_kernel(config).cubin

    def support(self, part: str, capability: tuple[int, int]) -> tuple[Arch, bytes]:
        """As `Source.support`."""
        arch = native_arch(capability)
        return arch, compile_support(part, arch).cubin


class BundleSource:
    """Takes kernels from a bundle; its dispatch table chooses.

    Args:
        bundle: The bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def configs(self) -> dict[str, KernelConfig]:
        """The bundle's GEMM kernels by name."""
        return {kernel.name: kernel.config for kernel in self.bundle.plan.kernels}

    def choose(
        self,
        problem: Problem,
        capability: tuple[int, int],
        block_m: int,
        multiprocessors: int = MULTIPROCESSORS,
    ) -> KernelConfig:
        """As `Source.choose`."""
        entries = [one for one in self.bundle.plan.dispatch if one.serves(problem, capability)]
        if not entries:
            raise UnsupportedError(
                f"bundle {self.bundle.folder} has no kernel for n={problem.n} k={problem.k} "
                f"group_size={problem.group_size} {problem.types} num_experts={problem.num_experts} "
                f"top_k={problem.top_k} on a GPU of {capability[0]}.{capability[1]}; build it for that "
                "(--unfused for models of billhook.load), or call use_bundle(None) to compile on first use"
            )
        nearest = max(entries, key=lambda entry: archs.parse(entry.arch))
        chosen = self.configs[nearest.kernel(problem.m)]
        if block_m in (0, chosen.tile.tile_m):
            return chosen
        fitting = [
            config
            for config in self.configs.values()
            if config.arch == chosen.arch and unserved(config, problem) is None
        ]
        return _with_rows(fitting, chosen, block_m, f"bundle {self.bundle.folder}")

    def cubin(self, config: KernelConfig) -> bytes:
        """As `Source.cubin`."""
        return self.bundle.cubin(config.name)

    def support(self, part: str, capability: tuple[int, int]) -> tuple[Arch, bytes]:
        """As `Source.support`."""
        held = [
            archs.parse(kernel.arch)
            for kernel in self.bundle.manifest.kernels
            if kernel.name == support_name(part, archs.parse(kernel.arch))
        ]
        fitting = [arch for arch in held if arch.runs_on(capability)]
        if not fitting:
            raise BundleError(
                f"bundle {self.bundle.folder} holds no {SUPPORT[part]} kernel for a GPU of "
                f"{capability[0]}.{capability[1]}; build it again for the models and targets that need it"
            )
        arch = max(fitting)
        return arch, self.bundle.cubin(support_name(part, arch))


def _with_rows(configs: list[KernelConfig], like: KernelConfig, block_m: int, where: str) -> KernelConfig:
    """Return the kernel nearest to `like` among those that take `block_m` rows at a time."""
    fitting = [config for config in configs if config.tile.tile_m == block_m]
    if not fitting:
        raise UnsupportedError(
            f"{where} has no kernel for blocks of {block_m} rows to stand in for {like}; "
            f"route with block_m={like.tile.tile_m}"
        )
    same = (like.tile.tile_n, like.tile.tile_k)
    return next((one for one in fitting if (one.tile.tile_n, one.tile.tile_k) == same), fitting[0])
