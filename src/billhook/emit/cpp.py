"""A plan as a C++ library: kernels, dispatch tables, and the host code that looks them up and launches.

Makefile               builds build/libbillhook.a and build/billhook_test
include/billhook.h     the C interface
include/billhook/...   device headers, copied
src/                   dispatch, launch, the interface's implementation: copied from `cpp/src`
src/dispatch_table.cpp kernels, and which one serves which problem
src/kernel_table.cpp   the kernels' handles
kernels/NAME.cu        one file per kernel; route.cu and group.cu for all targets
test/                  a program that runs every kernel against a reference: copied from `cpp/test`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import families
from ..arch import Arch, parse
from ..config import GemmTypes, KernelConfig, parse_types
from ..dtypes import BF16, E2M1F, E4M3FN, E8M0FNU, F16, F32, S8, S32, U4, U4B8, U8, U8B128
from ..plan import Dispatch, Plan
from .environment import templates
from .manifest import GENERATED
from .native import emit, emit_support
from .source import SourceFile

ROOT = "src/dispatch_table.cpp"  # names every kernel
HOST = Path(__file__).parents[1] / "cpp"
TYPES = (F16, BF16, F32, S8, S32, U4, U4B8, U8, U8B128, E4M3FN, E2M1F, E8M0FNU)  # BillhookType, from 1 on
_MOE = ("route", "group")  # what stands beside the GEMMs of MoE layers


@dataclass(frozen=True)
class _Target:
    """A GPU target with what is compiled for it."""

    arch: Arch
    kernels: list[str]
    first_class: int
    classes: int

    @property
    def major(self) -> int:
        return self.arch.major

    @property
    def minor(self) -> int:
        return self.arch.minor

    @property
    def suffix(self) -> str:
        return self.arch.suffix or " "

    @property
    def sm(self) -> str:
        return self.arch.sm

    @property
    def gencode(self) -> str:
        """The option of nvcc that compiles for it."""
        virtual = self.arch.target.replace("sm_", "compute_")
        code = f"[{self.arch.target},{virtual}]" if self.arch.ptx else self.arch.target
        return f"-gencode 'arch={virtual},code={code}'"


def emit_cpp(plan: Plan, headers: Mapping[str, str]) -> list[SourceFile]:
    """Write the library of a plan.

    Args:
        plan: Kernels and dispatch.
        headers: The device headers to be copied, by name as in `#include`: those of `kernel_sources`.

    Returns:
        All files; the first one, `ROOT`, refers to the others.
    """
    tables = _tables(plan)
    rendered = [
        _render("dispatch_table.cpp", ROOT, tables),
        _render("kernel_table.cpp", "src/kernel_table.cpp", tables),
        _render("Makefile", "Makefile", tables),
    ]
    copied = {path.relative_to(HOST).as_posix(): path.read_text("utf-8") for path in _host_files()}
    copied.update({f"include/{name}": text for name, text in headers.items()})
    copied.update({source.path: source.text for source in kernel_sources(plan)})
    return rendered + [SourceFile(path, f"// {GENERATED}.\n{text}") for path, text in sorted(copied.items())]


def kernel_sources(plan: Plan) -> list[SourceFile]:
    """Write the kernels of a plan, and those that route and group for them."""
    sources = [
        SourceFile(f"kernels/{one.path}", one.text) for one in emit(one.config for one in plan.kernels)
    ]
    for part in _MOE:
        text = emit_support(part, parse(plan.archs[0])).text  # the same for all targets
        sources.append(SourceFile(f"kernels/{part}.cu", text))
    return sources


def _host_files() -> Iterator[Path]:
    return (path for path in sorted(HOST.rglob("*")) if path.suffix in (".h", ".cpp"))


def _render(template: str, path: str, tables: Mapping[str, object]) -> SourceFile:
    text = templates().get_template(f"cpp/{template}.jinja").render(generated=GENERATED, **tables)
    return SourceFile(path, text)


def _tables(plan: Plan) -> dict[str, object]:
    """Return the rows of every table, in the order in which they refer to each other by index."""
    configs = [kernel.config for kernel in plan.kernels]
    index = {config.name: place for place, config in enumerate(configs)}
    targets: list[_Target] = []
    classes: list[dict[str, object]] = []
    ranges: list[dict[str, int]] = []
    for arch in sorted(map(parse, plan.archs), reverse=True):  # the most specific first, as a bundle is read
        mine = sorted((one for one in plan.dispatch if one.arch == str(arch)), key=_order)
        names = [config.name for config in configs if config.arch == arch]
        targets.append(_Target(arch, names, len(classes), len(mine)))
        for one in mine:
            classes.append(_class_row(one, len(ranges)))
            ranges += ({"last": span.last, "kernel": index[span.kernel]} for span in one.ranges)
    places = {target.arch: place for place, target in enumerate(targets)}
    kernels = [_kernel_row(config, places[config.arch]) for config in configs]
    return {"kernels": kernels, "ranges": ranges, "classes": classes, "targets": targets}


def _order(one: Dispatch) -> tuple[object, ...]:
    """Return what `dispatch.cpp` compares, in its order."""
    types = parse_types(one.types)
    codes = tuple(TYPES.index(each) for each in (types.a, types.b, types.s, types.c))
    return (codes, one.group_size, one.num_experts, one.top_k, one.n, one.k)


def _class_row(one: Dispatch, first_range: int) -> dict[str, object]:
    return {
        "types": _spell(parse_types(one.types)),
        "group_size": one.group_size,
        "num_experts": one.num_experts,
        "top_k": one.top_k,
        "n": one.n,
        "k": one.k,
        "first_range": first_range,
        "ranges": len(one.ranges),
    }


def _kernel_row(config: KernelConfig, target: int) -> dict[str, object]:
    tile = config.tile
    return {
        "name": config.name,
        "types": _spell(config.types),
        "group_size": config.group_size,
        "indexed": str(config.indexed).lower(),
        "grouped": str(config.grouped).lower(),
        "target": target,
        "tile_m": tile.tile_m,
        "tile_n": tile.tile_n,
        "tile_k": tile.tile_k,
        "cluster": tile.cluster,
        "stages_per_cta": families.stages_per_cta(config),
        "threads": families.threads(config),
        "shared_bytes": families.shared_memory(config),
        "workspace_bytes": families.workspace(config, 1),
        "boxes": [*families.boxes(config), 0, 0][:2],
        "rounds_weights": str(families.rounds_weights(config)).lower(),
    }


def _spell(types: GemmTypes) -> str:
    names = (f"BILLHOOK_{one.name.upper()}" for one in (types.a, types.b, types.s, types.c))
    return f"pack_types({', '.join(names)})"
