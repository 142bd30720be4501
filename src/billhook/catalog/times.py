"""How long tiles take, as was measured: what rules of several tiles choose by."""

from __future__ import annotations

import msgspec

from .. import families
from ..config import KernelConfig


class TileTimes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time of a tile's kernels for dense layers, a sum of parts that `billhook bench --fit` finds.

    Args:
        tile: As rules write it.
        activations: Their bits, 8 or 16.
        launch: Of any problem, microseconds.
        column: Of a column of k of a whole tile (`families.Work`), microseconds.
        wave: Of a wave of tiles, microseconds.
        weights: Their bits; None for any of which the tile has no times of their own.
    """

    tile: str
    activations: int
    launch: float
    column: float
    wave: float
    weights: int | None = None

    def predict(
        self, config: KernelConfig, m: int, n: int, k: int, multiprocessors: int = families.MULTIPROCESSORS
    ) -> float:
        """Return the time of a dense problem, microseconds.

        Args:
            config: A kernel of this tile.
            m: Rows of A.
            n: Output features.
            k: Input features.
            multiprocessors: Of the GPU.
        """
        done = families.work(config, m, n, k, multiprocessors)
        return self.launch + self.column * done.columns + self.wave * done.waves
