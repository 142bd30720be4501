"""Records of tiles -> the times that `catalog/rules/native.toml` chooses tiles of dense layers by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arch import parse
from ..catalog import TileTimes
from ..config import KernelConfig
from ..families import tells_work, work
from .ours import parse_tile
from .record import Case, Record
from .rows import TILE

if TYPE_CHECKING:
    import numpy as np

FEWEST_PROBLEMS = 6  # for three numbers
CLOSE = 1.5  # of the fastest tile's time: where a tile takes more, its time need not be known well
_TARGET = parse("9.0a")  # of the families that tell their work

_USUAL_WEIGHTS = 4  # bits of those whose times are of any that have none of their own

_Bits = tuple[int, int]  # of activations and weights


@dataclass(frozen=True)
class Sample:
    """How long a tile took for one problem.

    Args:
        kernel: Of the tile, with the stages that were the fastest.
        case: The problem.
        multiprocessors: Of the GPU.
        us: Microseconds.
    """

    kernel: KernelConfig
    case: Case
    multiprocessors: int
    us: float

    def predict(self, times: TileTimes) -> float:
        """Return what times say of it, microseconds."""
        return times.predict(self.kernel, self.case.m, self.case.n, self.case.k, self.multiprocessors)


@dataclass(frozen=True)
class Fit:
    """What the problems of one tile tell.

    Args:
        tile: As rules write it.
        activations: Their bits.
        weights: Their bits.
        problems: How many there were.
        times: What fits them best; None if they do not tell.
        rms: Root of the mean squared error of these times, relative to those measured.
        worst: Largest such error.
    """

    tile: str
    activations: int
    weights: int
    problems: int
    times: TileTimes | None = None
    rms: float = 0.0
    worst: float = 0.0


@dataclass(frozen=True)
class Loss:
    """What choosing by predicted times costs, over problems on which several tiles were measured.

    Args:
        activations: Their bits.
        weights: Their bits.
        problems: How many there were.
        mean: Of the chosen tile's time over the best one's, less one.
        worst: The largest of these.
        case: Where that was.
        chosen: The tile chosen there.
        best: The fastest tile there.
    """

    activations: int
    weights: int
    problems: int
    mean: float
    worst: float
    case: Case
    chosen: str
    best: str


_Problems = Mapping[tuple[str, Case], Mapping[str, Sample]]  # of a run -> tile -> sample


def fit(records: Iterable[Record]) -> tuple[list[Fit], list[Loss]]:
    """Return the times of each tile that dense problems were measured with, and the loss of choosing by them.

    Args:
        records: Those of runs with `--tile` or `--all-tiles`; others are ignored.

    Returns:
        Fits by bits of the activations, 16 first, of the weights, 4 first, and by size; a loss for each of
        them that has some.
    """
    problems = _collect(records)
    samples: dict[tuple[_Bits, str], list[Sample]] = {}
    for tiles in problems.values():
        least = min(sample.us for sample in tiles.values())
        for name, sample in tiles.items():
            if sample.us <= CLOSE * least:
                samples.setdefault((_bits(sample), name), []).append(sample)
    in_order = sorted(samples, key=lambda one: (-one[0][0], one[0][1], samples[one][0].kernel.tile))
    fits = [_fit(*one, samples[one]) for one in in_order]
    every = [
        _find_loss(bits, problems, fits)
        for bits in dict.fromkeys((one.activations, one.weights) for one in fits)
    ]
    return fits, [loss for loss in every if loss is not None]


def _bits(sample: Sample) -> _Bits:
    types = sample.kernel.types
    return types.a.bits, types.b.bits


def _collect(records: Iterable[Record]) -> _Problems:
    """Return, of each problem of a run, the time of each tile, with the fastest of its depths."""
    problems: dict[tuple[str, Case], dict[str, Sample]] = {}
    for record in records:
        if record.times is None or record.case.num_experts or not record.contestant.startswith(TILE):
            continue
        shape, _ = parse_tile(record.contestant[len(TILE) :])
        if not tells_work(shape.family):
            continue
        problem = record.case.problem
        kernel = shape.kernel(problem.types, problem.group_size, problem.moe, _TARGET)
        sample = Sample(kernel, record.case, record.machine.sms, record.times.median_us)
        tiles = problems.setdefault((record.run, record.case), {})
        if shape.name not in tiles or sample.us < tiles[shape.name].us:
            tiles[shape.name] = sample
    return problems


def _fit(bits: _Bits, tile: str, samples: Sequence[Sample]) -> Fit:
    """Return the times whose errors, relative to those measured, have the smallest squares."""
    import numpy as np

    if len(samples) < FEWEST_PROBLEMS:
        return Fit(tile, *bits, len(samples))
    done = [work(one.kernel, one.case.m, one.case.n, one.case.k, one.multiprocessors) for one in samples]
    parts = np.array([(1.0, one.columns, one.waves) for one in done])
    us = np.array([one.us for one in samples])
    relative = parts / us[:, None]
    if np.linalg.matrix_rank(relative) < relative.shape[1]:
        return Fit(tile, *bits, len(samples))
    launch, column, wave = (float(f"{number:.5g}") for number in _solve(relative))  # as they are written
    if column <= 0:
        return Fit(tile, *bits, len(samples))
    activations, weights = bits
    own = None if weights == _USUAL_WEIGHTS else weights
    times = TileTimes(tile, activations, launch, column, wave, own)
    errors = relative @ (launch, column, wave) - 1
    rms, worst = math.sqrt((errors**2).mean()), float(abs(errors).max())
    return Fit(tile, *bits, len(samples), times, rms, worst)


def _solve(parts: np.ndarray) -> Sequence[float]:
    """Return numbers, none below 0, such that so much of each of a row's parts is 1 in all: least squares."""
    import numpy as np

    count = parts.shape[1]
    least, best = math.inf, np.zeros(count)
    for some in itertools.chain(*(itertools.combinations(range(count), size + 1) for size in range(count))):
        found = np.zeros(count)
        found[list(some)] = np.linalg.lstsq(parts[:, some], np.ones(len(parts)), rcond=None)[0]
        error = float(((parts @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least:
            least, best = error, found
    return [float(number) for number in best]


def _find_loss(bits: _Bits, problems: _Problems, fits: Iterable[Fit]) -> Loss | None:
    mine = [one for one in fits if (one.activations, one.weights) == bits]
    times = {one.tile: one.times for one in mine if one.times is not None}
    losses = []
    for (_, case), tiles in problems.items():
        predicted = {
            name: sample.predict(times[name])
            for name, sample in tiles.items()
            if name in times and _bits(sample) == bits
        }
        if not predicted or len(tiles) < 2:
            continue
        chosen = min(predicted, key=lambda name: predicted[name])
        best = min(tiles, key=lambda name: tiles[name].us)
        losses.append((tiles[chosen].us / tiles[best].us - 1, case, chosen, best))
    if not losses:
        return None
    worst, case, chosen, best = max(losses, key=lambda one: one[0])
    mean = sum(loss for loss, *_ in losses) / len(losses)
    return Loss(*bits, len(losses), mean, worst, case, chosen, best)


def render_times(fits: Iterable[Fit], losses: Iterable[Loss]) -> str:
    """Return fits as times, in the layout of `catalog/rules/native.toml`, and losses as comments."""
    blocks = []
    for one in fits:
        if one.times is None:
            blocks.append(
                f"# {one.tile} under {one.activations}-bit activations, {one.weights}-bit weights: left out, "
                f"{one.problems} problems do not tell its times; measure {FEWEST_PROBLEMS} or more, of "
                "different sizes"
            )
            continue
        comment = f"# {one.problems} problems, error {one.rms:.1%} rms, {one.worst:.1%} at most"
        lines = [
            comment,
            "[[times]]",
            f'tile = "{one.tile}"',
            f"activations = {one.activations}",
            *([] if one.times.weights is None else [f"weights = {one.times.weights}"]),
            f"launch = {one.times.launch!r}",
            f"column = {one.times.column!r}",
            f"wave = {one.times.wave!r}",
        ]
        blocks.append("\n".join(lines))
    blocks += [
        f"# {one.activations}-bit activations, {one.weights}-bit weights, choosing by these times: "
        f"{one.mean:.2%} slower than the best tile in the mean of {one.problems} problems, "
        f"{one.worst:.1%} at most\n"
        f"# (n={one.case.n} k={one.case.k} m={one.case.m}: {one.chosen}, where {one.best} is the best)"
        for one in losses
    ]
    return "\n\n".join(blocks) + "\n"
