"""How checkpoints store integer codes in words, read to one code a byte in the order of the GEMM, [.., k, n].

Forms:
    "gptq": int32 [k bits / 32, n]; a word holds consecutive k, lowest bits first.
    "awq": int32 [k, n / 8], 4 bits; a word holds eight consecutive n in the order 0 2 4 6 1 3 5 7, lowest
        bits first.
    "compressed_tensors": int32 [n, k bits / 32], or uint8 [n, k bits / 8]; a word or byte holds consecutive
        k, lowest bits first.

Source: the tensors that AutoGPTQ and GPTQModel (`qweight`), AutoAWQ (`qweight`) and compressed-tensors
(`weight_packed`) write; OCP MX and NVFP4 checkpoints put two e2m1 codes in a byte as the last form does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightError

FORMS = ("gptq", "awq", "compressed_tensors")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, lowest first
_WORD_BITS = 32


@dataclass(frozen=True, eq=False)
class Words:
    """Codes as a checkpoint stores them; they are read where the weight is packed.

    Args:
        values: int32 words, or uint8 bytes, as the form has them; 2 axes, or 3 with experts first.
        form: As the module describes.
        bits: 4 or 8.
        order: int32 [k], the stored input feature that each row of the weight is (act-order), in a weight of
            2 axes; None if they are in order.

    Raises:
        WeightError: As `read_codes`.
    """

    values: npt.NDArray[Any]
    form: str
    bits: int
    order: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        _check_words(self.values, self.form, self.bits)

    def read(self) -> npt.NDArray[np.uint8]:
        """Return the codes, uint8 [.., k, n]."""
        codes = read_codes(self.values, self.form, self.bits)
        return codes if self.order is None else codes[self.order]

    def __len__(self) -> int:
        """Return the number of experts, of words of 3 axes."""
        return len(self.values)

    def __getitem__(self, expert: int) -> Words:
        """Return the words of one expert."""
        return replace(self, values=self.values[expert])


def join_words(parts: Sequence[Words]) -> Words:
    """Return weights [k, n] of one form and order as one, their output features in a row."""
    axis = 0 if parts[0].form == "compressed_tensors" else 1
    return replace(parts[0], values=np.concatenate([one.values for one in parts], axis=axis))


def stack_words(experts: Sequence[Words]) -> Words:
    """Return weights [k, n] of one form as [experts, k, n]."""
    return replace(experts[0], values=np.stack([one.values for one in experts]))


def read_codes(stored: npt.NDArray[Any], form: str, bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of a weight, uint8 [.., k, n].

    Args:
        stored: int32 words (or uint8 bytes, "compressed_tensors"), 2 axes, or 3 with experts first.
        form: As the module describes.
        bits: 4 or 8.

    Raises:
        WeightError: Another form or width, or a dtype or number of axes that the form does not have.
    """
    _check_words(stored, form, bits)
    if form == "gptq":
        return _spread_rows(stored, bits)
    if form == "awq":
        return _spread_awq(stored)
    codes: npt.NDArray[np.uint8] = _spread(stored, bits).swapaxes(-1, -2)
    return codes


def read_zeros(stored: npt.NDArray[np.int32], form: str, bits: int) -> npt.NDArray[np.uint8]:
    """Return the zero points of a weight as they are stored, uint8 [.., groups, n].

    Args:
        stored: int32 [.., groups, n bits / 32]; "compressed_tensors": int32 [.., n bits / 32, groups].
        form: As the module describes. GPTQ version 1 stores zero points less one, which is left so.
        bits: 4 or 8.

    Raises:
        WeightError: As `read_codes`.
    """
    check_form(form, bits)
    if stored.dtype != np.int32 or stored.ndim not in (2, 3):
        raise WeightError(
            f"{form} zero points must be int32, 2 or 3 axes (got {stored.dtype} {stored.shape})"
        )
    if form == "awq":
        return _spread_awq(stored)
    return _spread(stored.swapaxes(-1, -2) if form == "compressed_tensors" else stored, bits)


def check_form(form: str, bits: int) -> None:
    """Refuse a form that does not exist, or not for codes of so many bits.

    Raises:
        WeightError: As said.
    """
    if form not in FORMS:
        raise WeightError(f"codes are stored as one of {', '.join(FORMS)} (got {form!r})")
    if bits not in (4, 8) or (form == "awq" and bits != 4):
        raise WeightError(f"{form} codes have {'4' if form == 'awq' else '4 or 8'} bits (got {bits})")


def _check_words(stored: npt.NDArray[Any], form: str, bits: int) -> None:
    check_form(form, bits)
    allowed = (np.int32, np.uint8) if form == "compressed_tensors" else (np.int32,)
    if stored.dtype not in allowed or stored.ndim not in (2, 3) or stored.size == 0:
        names = " or ".join(np.dtype(one).name for one in allowed)
        raise WeightError(
            f"{form} codes must be {names}, 2 or 3 axes, none empty (got {stored.dtype} {stored.shape})"
        )


def _spread(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of words along the last axis, lowest bits first."""
    held = np.ascontiguousarray(words).view(np.uint8)
    return held if bits == 8 else np.stack([held & 15, held >> 4], axis=-1).reshape(*held.shape[:-1], -1)


def _spread_rows(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.uint8]:
    """Return the codes of words along the last axis but one, lowest bits first."""
    *experts, rows, n = words.shape
    held = np.ascontiguousarray(words).view(np.uint8).reshape(*experts, rows, n, -1)
    codes = np.empty((*experts, rows, _WORD_BITS // bits, n), np.uint8)
    for place in range(held.shape[-1]):
        plane = np.ascontiguousarray(held[..., place])  # one byte of each word: numpy is quick with those
        if bits == 8:
            codes[..., place, :] = plane
        else:
            np.bitwise_and(plane, 15, out=codes[..., 2 * place, :])
            np.right_shift(plane, 4, out=codes[..., 2 * place + 1, :])
    return codes.reshape(*experts, -1, n)


def _spread_awq(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Return the 4-bit codes of words along the last axis, each in the column that it belongs to."""
    codes = np.empty((*words.shape, len(AWQ_ORDER)), np.uint8)
    for place, column in enumerate(AWQ_ORDER):
        nibble = words.view(np.uint32) >> np.uint32(4 * place) & np.uint32(15)
        np.copyto(codes[..., column], nibble, casting="unsafe")
    return codes.reshape(*words.shape[:-1], -1)
