"""The body of `kernel_selector.h`: run-time parameters -> `kernel = Marlin<...>`.

The tree includes it inside a function that has the template's parameters in scope
as run-time values. Two forms with one meaning: "chain", the documented if/else
chain, and "switch", nested switches whose cost does not grow with the number of
kernels. Parameters that no kernel has leave `kernel` as it was; FP8 activations that
are not built and kernels that a narrowed plan left out raise an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .marlin_plan import Instantiation, MarlinPlan, cpp
from .release import Fp8Activations

_TYPES = {"a_type": "a", "b_type": "b", "c_type": "c", "s_type": "s"}
_VALUES = (
    "threads",
    "thread_m_blocks",
    "thread_n_blocks",
    "thread_k_blocks",
    "m_block_size_8",
    "stages",
    "group_blocks",
    "is_zp_float",
)
# The switch form selects by these in turn; what is left (at most six kernels) is compared one by one.
_LEVELS = (*_TYPES, "group_blocks", "stages", "thread_m_blocks")
_REST = tuple(name for name in _VALUES if name not in _LEVELS)


@dataclass(frozen=True)
class Branch:
    """One step of an if/else chain.

    Args:
        condition: A C++ expression; empty for always.
        kernel: Template arguments of the kernel it selects; empty if it raises an error.
        error: The error's words, a C++ string literal's content; empty if it selects a kernel.
    """

    condition: str
    kernel: str = ""
    error: str = ""


@dataclass(frozen=True)
class Switch:
    """One switch of the nested form.

    Args:
        depth: Levels of indentation, for the template.
        subject: The C++ expression that is switched on.
        cases: (label, what follows): a `Switch`, or the branches of a leaf.
    """

    depth: int
    subject: str
    cases: tuple[tuple[str, Switch | tuple[Branch, ...]], ...]


def chain(plan: MarlinPlan, fp8: Fp8Activations) -> list[Branch]:
    """Return the branches of the documented if/else chain, in the order of the release's generator."""
    branches = [_branch(kernel, (*_TYPES, *_VALUES)) for kernel in plan.kernels]
    if not plan.fp8_built:
        branches.append(Branch(_equals("a_type", fp8.activation), error=fp8.message))
    branches += [_branch(kernel, (*_TYPES, *_VALUES), dropped=True) for kernel in plan.dropped]
    return branches


def switch(plan: MarlinPlan, fp8: Fp8Activations) -> Switch:
    """Return the nested switches that select what `chain` selects."""
    kept = set(plan.kernels)
    tree = _nest([*plan.kernels, *plan.dropped], kept, 0)
    if plan.fp8_built:
        return tree
    refused = (Branch("", error=fp8.message),)
    return Switch(0, tree.subject, (*tree.cases, (_label(_LEVELS[0], fp8.activation), refused)))


def _nest(kernels: list[Instantiation], kept: set[Instantiation], depth: int) -> Switch:
    """Group kernels by the value of one level, and each group by the levels below."""
    name = _LEVELS[depth]
    groups: dict[object, list[Instantiation]] = {}
    for kernel in kernels:
        groups.setdefault(_value(kernel, name), []).append(kernel)
    last = depth == len(_LEVELS) - 1
    return Switch(
        depth,
        f"{name}.id()" if name in _TYPES else name,
        tuple(
            (
                _label(name, value),
                tuple(_leaf(group, kept)) if last else _nest(group, kept, depth + 1),
            )
            for value, group in groups.items()
        ),
    )


def _leaf(kernels: list[Instantiation], kept: set[Instantiation]) -> Iterator[Branch]:
    for kernel in kernels:
        yield _branch(kernel, _REST, dropped=kernel not in kept)


def _branch(kernel: Instantiation, names: tuple[str, ...], dropped: bool = False) -> Branch:
    condition = " && ".join(_equals(name, _value(kernel, name)) for name in names)
    if dropped:
        return Branch(condition, error=left_out(kernel))
    return Branch(condition, kernel=kernel.arguments)


def left_out(kernel: Instantiation) -> str:
    """Say that a narrowed plan left a kernel out, and what brings it back."""
    return (
        f"the marlin kernel for {kernel.a} x {kernel.b} -> {kernel.c}, scales {kernel.s}, "
        f"group_blocks {kernel.group_blocks}, thread_m_blocks {kernel.thread_m_blocks}, was left out of this "
        f"narrowed build; generate again with the model that needs it (--models), for as many tokens as it "
        f"gets (--max-tokens), and with --formats {kernel.format} --act {kernel.activation} "
        f"--group-size {kernel.group_size} where those are given, or without narrowing."
    )


def _value(kernel: Instantiation, name: str) -> object:
    return getattr(kernel, _TYPES.get(name, name))


def _label(name: str, value: object) -> str:
    return f"vllm::{value}.id()" if name in _TYPES else str(value)


def _equals(name: str, value: object) -> str:
    if name in _TYPES:
        return f"{name} == vllm::{value}"
    return f"{name} == {cpp(value)}" if isinstance(value, int) else f"{name} == {value}"
