"""Codes as checkpoints store them, against packing written from the formats' descriptions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.errors import WeightError
from billhook.formats.stored import read_codes, read_zeros

SIZES = st.integers(1, 6).map(lambda count: 16 * count)


def join(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put consecutive codes of the last axis into words, lowest bits first."""
    each = 32 // bits
    fields = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint64)
    words = (fields << (np.arange(each, dtype=np.uint64) * np.uint64(bits))).sum(-1)
    return words.astype(np.uint32).view(np.int32)


def interleave(codes: np.ndarray) -> np.ndarray:
    """Put eight consecutive columns into the order in which AutoAWQ fills a word."""
    eights = codes.reshape(*codes.shape[:-1], -1, 8)
    return eights[..., [0, 2, 4, 6, 1, 3, 5, 7]].reshape(codes.shape)


@settings(max_examples=30)
@given(bits=st.sampled_from([4, 8]), k=SIZES, n=SIZES, experts=st.integers(0, 2), seed=st.integers(0, 2**31))
def test_every_form_is_read(bits: int, k: int, n: int, experts: int, seed: int) -> None:
    shape = (experts, k, n) if experts else (k, n)
    codes = np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint8)
    rows = np.ascontiguousarray(codes.swapaxes(-1, -2))
    gptq = np.ascontiguousarray(join(rows, bits).swapaxes(-1, -2))
    assert (read_codes(gptq, "gptq", bits) == codes).all()
    assert (read_codes(join(rows, bits), "compressed_tensors", bits) == codes).all()
    assert (read_codes(join(rows, bits).view(np.uint8), "compressed_tensors", bits) == codes).all()
    assert (read_zeros(join(codes, bits), "gptq", bits) == codes).all()
    assert (read_zeros(join(rows, bits).swapaxes(-1, -2), "compressed_tensors", bits) == rows).all()
    if bits == 4:
        awq = join(interleave(codes), 4)
        assert (read_codes(awq, "awq", 4) == codes).all()
        assert (read_zeros(awq, "awq", 4) == codes).all()


def test_what_no_checkpoint_stores_is_refused() -> None:
    words = np.zeros((2, 16), np.int32)
    for stored, form, bits, message in (
        (words, "marlin", 4, "one of gptq, awq, compressed_tensors"),
        (words, "awq", 8, "awq codes have 4 bits"),
        (words, "gptq", 2, "4 or 8 bits"),
        (words.view(np.uint8), "gptq", 4, "must be int32"),
        (words.astype(np.float32), "compressed_tensors", 4, "int32 or uint8"),
        (words[0], "gptq", 4, "2 or 3 axes"),
        (words[:0], "gptq", 4, "none empty"),
    ):
        with pytest.raises(WeightError, match=message):
            read_codes(stored, form, bits)
    with pytest.raises(WeightError, match="zero points must be int32"):
        read_zeros(words.astype(np.int64), "gptq", 4)
