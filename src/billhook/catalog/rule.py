"""Tile-choice rules: conditions on a problem and a GPU target, and the tile or tiles they choose from."""

from __future__ import annotations

import math

import msgspec

from ..config import Problem
from ..dtypes import DType


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A half-open interval.

    Args:
        above: The value must be greater than this.
        max: The value may be at most this.
    """

    above: float = 0
    max: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.above < value <= self.max

    def describe(self, name: str) -> str:
        """Return the condition in words, such as `8 < rows <= 16`; "" if it always holds."""
        low = f"{self.above:g} < " if self.above > 0 else ""
        high = f" <= {self.max:g}" if self.max < math.inf else ""
        if low and not high:
            return f"{name} > {self.above:g}"
        return f"{low}{name}{high}" if low or high else ""


ANY = Bounds()


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule; conditions left out always hold.

    Args:
        tile: The tile it chooses, such as `m16n128k256`; or several, of which it takes the one that
            is predicted to be the fastest (`TileTimes`), the first of equals.
        rows: Rows that one weight matrix multiplies (`Problem.rows_per_expert`).
        n: Output features of one weight matrix.
        k: Input features.
        experts: Weight matrices of a MoE layer on one GPU; says nothing of dense layers.
        moe: True for MoE layers only, False for dense layers only.
        arch: Compute capabilities, such as `9.0`; empty for all.
        activations: Bits of the activations, 8 or 16; or names of their element types, to tell those of 8
            bits apart.
        weights: Bits of the weights, 4 or 8.
    """

    tile: str | tuple[str, ...]
    rows: Bounds = ANY
    n: Bounds = ANY
    k: Bounds = ANY
    experts: Bounds = ANY
    moe: bool | None = None
    arch: tuple[str, ...] = ()
    activations: int | tuple[str, ...] | None = None
    weights: int | None = None

    @property
    def tiles(self) -> tuple[str, ...]:
        """The tiles it chooses from."""
        return self.tile if isinstance(self.tile, tuple) else (self.tile,)

    @property
    def predicts(self) -> bool:
        """Whether it chooses by predicted time."""
        return isinstance(self.tile, tuple)

    def applies(self, moe: bool, activations: DType, weights: int, capability: tuple[int, int]) -> bool:
        """Whether the conditions on the kind of layer, types (of weights by bits) and the GPU target hold."""
        return (
            self.moe in (None, moe)
            and self.takes(activations)
            and self.weights in (None, weights)
            and (not self.arch or "{}.{}".format(*capability) in self.arch)
        )

    def matches(self, problem: Problem, capability: tuple[int, int]) -> bool:
        """Whether every condition holds."""
        return (
            self.applies(problem.moe, problem.types.a, problem.types.b.bits, capability)
            and last_m(self.rows.above, problem) < problem.m <= last_m(self.rows.max, problem)
            and problem.n in self.n
            and problem.k in self.k
            and (not problem.moe or problem.num_experts in self.experts)
        )

    def describe(self) -> str:
        """Return the conditions in words."""
        words = [] if self.moe is None else ["moe" if self.moe else "dense"]
        if isinstance(self.activations, int):
            words.append(f"{self.activations}-bit activations")
        elif self.activations:
            words.append(f"{' or '.join(self.activations)} activations")
        words += [] if self.weights is None else [f"{self.weights}-bit weights"]
        words += [bounds.describe(name) for name, bounds in self.bounds().items()]
        words += [f"arch {' or '.join(self.arch)}"] if self.arch else []
        return ", ".join(word for word in words if word) or "otherwise"

    def bounds(self) -> dict[str, Bounds]:
        """Return the conditions on numbers by name."""
        return {"rows": self.rows, "n": self.n, "k": self.k, "experts": self.experts}

    def takes(self, activations: DType) -> bool:
        """Whether the condition on the type of activations holds."""
        if isinstance(self.activations, tuple):
            return activations.name in self.activations
        return self.activations in (None, activations.bits)


def last_m(rows: float, problem: Problem) -> float:
    """Return the largest m that gives each weight matrix at most `rows` rows on average.

    Rules are matched in terms of this whole number, so that a table of switch points and
    a look-up for one m can never differ by rounding.
    """
    if rows == math.inf:
        return math.inf
    return math.floor(rows * problem.num_experts / problem.top_k if problem.moe else rows)
