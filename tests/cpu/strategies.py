"""Hypothesis strategies for the leaves' values."""

from __future__ import annotations

from hypothesis import strategies as st

from billhook.arch import Arch, supported
from billhook.catalog import load
from billhook.config import GemmTypes, KernelConfig, Problem, Tile
from billhook.dtypes import ALL, E4M3FN, F16
from billhook.families.base import folds


def archs() -> st.SearchStrategy[Arch]:
    """Every target that `parse` accepts."""
    capabilities = [tuple(map(int, text.split("."))) for text in supported()]
    suffixes = [
        Arch(major, minor, suffix)
        for major, minor in capabilities
        for suffix in ("", "a", "f")
        if not suffix or (major, minor) >= ((9, 0) if suffix == "a" else (10, 0))
    ]
    return st.sampled_from(suffixes)


def any_types() -> st.SearchStrategy[GemmTypes]:
    """Any four types, whether a kernel multiplies them or not."""
    one = st.sampled_from(sorted(ALL.values()))
    return st.builds(GemmTypes, one, one, one, one)


def served_types() -> st.SearchStrategy[GemmTypes]:
    """Types of the installed kernels."""
    return st.sampled_from([types for one in load().formats for types in one.types()])


def wide_types() -> st.SearchStrategy[GemmTypes]:
    """Those of them whose activations have 16 bits."""
    return served_types().filter(lambda types: types.a.bits == 16)


def tiles() -> st.SearchStrategy[Tile]:
    """Tiles, legal or not."""
    number = st.integers(1, 1024)
    return st.builds(Tile, number, number, number, st.integers(1, 12), st.integers(1, 16), st.booleans())


def group_sizes(types: GemmTypes) -> st.SearchStrategy[int]:
    """Group sizes of the installed kernels for these types."""
    return st.sampled_from(
        [size for one in load().formats if types in one.types() for size in one.group_sizes]
    )


def kernel_configs() -> st.SearchStrategy[KernelConfig]:
    """Configs whose names follow the grammar, legal or not."""
    return st.builds(
        KernelConfig,
        family=st.from_regex(r"[a-z]+", fullmatch=True),
        types=any_types(),
        group_size=st.just(-1) | st.integers(1, 4096),
        tile=tiles(),
        indexed=st.booleans(),
        arch=archs(),
    )


def requests() -> st.SearchStrategy[tuple[Problem, Arch]]:
    """Problems and targets whose installed kernels serve them."""
    return st.tuples(problems(served_types()), archs()).filter(lambda one: multiplies(one[1], one[0].types))


def multiplies(arch: Arch, types: GemmTypes) -> bool:
    """Whether a target has instructions for the types of an installed kernel."""
    if folds(types):
        return arch.sm == "sm90a"
    if types.a == E4M3FN:
        return arch.capability >= (8, 9)
    return types.c == F16 or arch.capability >= (8, 0)


@st.composite
def problems(draw: st.DrawFn, types: st.SearchStrategy[GemmTypes] | None = None) -> Problem:
    """Problems that the installed kernels serve; with 16-bit activations unless other types are given."""
    num_experts = draw(st.sampled_from([0, 0, 1, 3, 8, 60, 128]))
    served = draw(wide_types() if types is None else types)
    return Problem(
        m=draw(st.integers(1, 20000)),
        n=16 * draw(st.integers(1, 4000)),
        k=16 * draw(st.integers(1, 2000)),
        types=served,
        group_size=draw(group_sizes(served)),
        num_experts=num_experts,
        top_k=draw(st.integers(1, min(8, num_experts))) if num_experts else 0,
    )
