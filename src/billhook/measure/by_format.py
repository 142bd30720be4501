"""Tables across formats: time per byte of weights, and what 8-bit activations gain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .record import Case
from .roofline import weight_bytes
from .rows import OURS, Row, align, geomean

PLAIN, PLAIN_GROUP = "u4b8", 128  # what others are compared with
FEW_TOKENS = 16  # up to so many, reading the weights takes most of the time
MANY_TOKENS = 1024  # from so many on, computing does


@dataclass(frozen=True)
class Timed:
    """Our time on one problem.

    Args:
        case: The problem.
        us: Median, microseconds.
    """

    case: Case
    us: float

    @property
    def activations(self) -> str:
        """Name of the activations' type."""
        return self.case.problem.types.a.name

    @property
    def narrow(self) -> bool:
        """Whether activations have 8 bits."""
        return self.case.problem.types.a.bits == 8

    @property
    def name(self) -> str:
        """Activations, format and group size."""
        group = "channel" if self.case.group_size == -1 else f"g{self.case.group_size}"
        return f"{self.activations} x {self.case.format} {group}"

    @property
    def where(self) -> tuple[str, int, int, int]:
        """What times must have in common to be compared: layer, n, k, tokens."""
        return (self.case.layer, self.case.n, self.case.k, self.case.tokens)

    @property
    def megabytes(self) -> float:
        """Codes, scales and zero points that are read, in 10^6 bytes."""
        return weight_bytes(self.case.problem, self.case.experts_hit) / 1e6


def render(rows: Sequence[Row]) -> list[str]:
    """Return the tables that the rows of one run allow; nothing for bf16 x u4b8 alone."""
    timed = [Timed(row.case, us) for row in rows if (us := row.median(OURS)) is not None]
    return [*_per_byte(timed), *_narrow(timed)]


def _per_byte(timed: Sequence[Timed]) -> list[str]:
    """Compare formats by the time of a byte of weights, at few tokens."""
    few = [one for one in timed if one.case.tokens <= FEW_TOKENS and not one.narrow]
    table, ratios = [], dict[str, list[float]]()
    for one in few:
        plain = _find_plain(few, one, one.activations)
        if plain is None:
            continue
        ratio = one.us / one.megabytes / (plain.us / plain.megabytes)
        if one is not plain:
            ratios.setdefault(one.name, []).append(ratio)
        table.append([*_describe(one), f"{one.us:.1f}", f"{one.megabytes:.2f}", f"{ratio:.2f}"])
    if not ratios:
        return []
    head = ["ours, weights read", "types", "us", "MB", f"us/MB over {PLAIN}"]
    return [*align([head, *table]), "", *_means(ratios, f"us/MB over {PLAIN}", max), ""]


def _narrow(timed: Sequence[Timed]) -> list[str]:
    """Compare 8-bit activations with bf16 ones."""
    table, gains = [], dict[str, list[float]]()
    for one in timed:
        plain = _find_plain(timed, one, "bf16") if one.narrow else None
        if plain is None:
            continue
        gain = plain.us / one.us
        if one.case.tokens >= MANY_TOKENS:
            gains.setdefault(one.name, []).append(gain)
        table.append([*_describe(one), f"{one.us:.1f}", f"{plain.us:.1f}", f"{gain:.2f}"])
    if not table:
        return []
    head = ["ours, 8-bit activations", "types", "us", f"bf16 x {PLAIN}", "times as fast"]
    means = _means(gains, f"times as fast, {MANY_TOKENS} tokens and more", min)
    return [*align([head, *table]), "", *([*means, ""] if gains else [])]


def _find_plain(timed: Sequence[Timed], one: Timed, activations: str) -> Timed | None:
    """Return the time of u4b8 weights, by 128 if there are, on the same layer and tokens; or None."""
    found = [
        other
        for other in timed
        if other.where == one.where and other.case.format == PLAIN and other.activations == activations
    ]
    return min(found, key=lambda other: other.case.group_size != PLAIN_GROUP, default=None)


def _describe(one: Timed) -> list[str]:
    return [f"{one.case.layer} {'t' if one.case.num_experts else 'm'}={one.case.tokens}", one.name]


def _means(values: dict[str, list[float]], what: str, worst: Callable[[list[float]], float]) -> list[str]:
    """Return geometric mean and worst of each name."""
    table = [
        [name, f"{mean:.3f}", f"{worst(found):.2f}", str(len(found))]
        for name, found in values.items()
        if (mean := geomean(found)) is not None
    ]
    return align([[what, "geomean", "worst", "problems"], *table])
