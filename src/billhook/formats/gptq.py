"""Read GPTQ tensors (4 bits, symmetric) as u4b8.

Source: the tensors that AutoGPTQ and GPTQModel write: `qweight` holds eight codes of
consecutive k per word, lowest nibble first; `qzeros` eight zero points of consecutive
n. Format v1 stores the zero point less one (7), v2 stores it as it is (8).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightError
from .u4b8 import BIAS, Quantized, count_groups

_PER_WORD = 8


def read(
    qweight: npt.NDArray[np.int32],
    scales: npt.NDArray[Any],
    qzeros: npt.NDArray[np.int32] | None = None,
    g_idx: npt.NDArray[np.int32] | None = None,
    *,
    group_size: int,
    version: int = 1,
) -> Quantized:
    """Read one layer.

    Args:
        qweight: int32 [k / 8, n].
        scales: f16 or bf16 [groups, n].
        qzeros: int32 [groups, n / 8]; checked to be symmetric.
        g_idx: int [k], the group of each input feature; only k // group_size is served.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        version: 1 (`checkpoint_format` gptq) or 2 (gptq_v2).

    Raises:
        WeightError: A wrong dtype or shape, an asymmetric zero point, or act-order.
    """
    if version not in (1, 2):
        raise WeightError(f"GPTQ format version must be 1 or 2 (got {version})")
    if qweight.dtype != np.int32 or qweight.ndim != 2:
        raise WeightError(f"qweight must be int32 [k / 8, n] (got {qweight.dtype} {qweight.shape})")
    codes = nibbles(qweight, axis=0)
    k, n = codes.shape
    groups = count_groups(k, group_size)
    if qzeros is not None:
        _check_zeros(qzeros, groups, n, version)
    if g_idx is not None:
        _check_order(g_idx, k, group_size)
    return Quantized(codes, scales, group_size)


def nibbles(words: npt.NDArray[np.int32], axis: int) -> npt.NDArray[np.uint8]:
    """Spread each word's eight 4-bit codes along `axis` (0 or 1), lowest nibble first."""
    shifts = np.arange(0, 4 * _PER_WORD, 4, dtype=np.uint32)
    spread = np.expand_dims(words.view(np.uint32), axis + 1)
    shape = (1, _PER_WORD, 1) if axis == 0 else (1, 1, _PER_WORD)
    codes = (spread >> shifts.reshape(shape) & 15).astype(np.uint8)
    rows, columns = words.shape
    return codes.reshape((rows * _PER_WORD, columns) if axis == 0 else (rows, columns * _PER_WORD))


def _check_zeros(qzeros: npt.NDArray[np.int32], groups: int, n: int, version: int) -> None:
    want = (groups, -(-n // _PER_WORD))
    if qzeros.dtype != np.int32 or qzeros.shape != want:
        raise WeightError(f"qzeros must be int32 {want} (got {qzeros.dtype} {qzeros.shape})")
    stored = nibbles(qzeros, axis=1)[:, :n]
    symmetric = BIAS - 1 if version == 1 else BIAS
    wrong = np.argwhere(stored != symmetric)
    if len(wrong):
        group, channel = wrong[0]
        other = 3 - version
        hint = (
            f"; it reads as version {other}" if (stored == (BIAS if version == 1 else BIAS - 1)).all() else ""
        )
        raise WeightError(
            f"zero points must be symmetric (stored as {symmetric} in GPTQ version {version}); "
            f"group {group}, channel {channel} holds {stored[group, channel]}{hint}; "
            "asymmetric GPTQ is not built yet"
        )


def _check_order(g_idx: npt.NDArray[np.int32], k: int, group_size: int) -> None:
    if g_idx.shape != (k,):
        raise WeightError(f"g_idx must have one entry for each of k={k} input features (got {g_idx.shape})")
    trivial = np.zeros(k, np.int64) if group_size == -1 else np.arange(k) // group_size
    wrong = np.flatnonzero(g_idx != trivial)
    if len(wrong):
        at = wrong[0]
        raise WeightError(
            f"g_idx puts input feature {at} into group {g_idx[at]}, not {trivial[at]}: the checkpoint was "
            "quantized with act-order (desc_act), which is not built yet; use one with desc_act=false"
        )
