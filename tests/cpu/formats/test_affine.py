"""Quantizing to integers with scales and zero points, and back."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.dtypes import BF16, E4M3FN, F16, F32, U4, U4B8, U8, U8B128, DType
from billhook.errors import WeightError
from billhook.formats.affine import ELEMENTS, Affine, dequantize, quantize
from billhook.formats.elements import numpy_dtype

ALL_ELEMENTS = st.sampled_from(ELEMENTS)
SEEDS = st.integers(0, 2**32 - 1)


def random_weights(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = 2.0 ** rng.integers(-6, 4)
    return (rng.standard_normal(shape) * spread + rng.choice([-1, 0, 1]) * spread).astype(np.float32)


@given(
    element=ALL_ELEMENTS,
    k=st.integers(1, 90),
    group=st.sampled_from([-1, 16, 32, 64]),
    scale=st.sampled_from([F16, BF16, F32]),
    seed=SEEDS,
)
def test_no_other_code_is_nearer(element: DType, k: int, group: int, scale: DType, seed: int) -> None:
    n = 5
    weight = random_weights(seed, k, n)
    quantized = quantize(weight, element, group, scale)
    size = k if group == -1 else group
    assert quantized.scales.shape == (-(-k // size), n)
    assert quantized.scales.dtype == numpy_dtype(scale)
    scales = quantized.scales.astype(np.float64)[np.arange(k) // size]
    zeros = element.bias if quantized.zeros is None else quantized.zeros.astype(int)[np.arange(k) // size]
    every = (np.arange(2**element.bits)[:, None, None] - zeros) * scales
    nearest = np.abs(every - weight).min(axis=0)
    assert (np.abs(dequantize(quantized, np.float64) - weight) <= nearest).all()


@given(element=ALL_ELEMENTS, pairs=st.integers(1, 35), group=st.sampled_from([-1, 16, 32]), seed=SEEDS)
def test_weights_of_the_grid_come_back_exactly(element: DType, pairs: int, group: int, seed: int) -> None:
    k = 2 * pairs
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**element.bits, (k, 3), dtype=np.uint8)
    size = k if group == -1 else group
    groups = -(-k // size)
    codes[::size], codes[1::size] = 0, 2**element.bits - 1  # every group fills its range
    zeros = None if element.bias else rng.integers(0, 2**element.bits, (groups, 3), dtype=np.uint8)
    scales = (2.0 ** rng.integers(-8, 3, (groups, 3))).astype(np.float16)
    weight = dequantize(Affine(element, codes, scales, zeros, group))
    assert (dequantize(quantize(weight, element, group)) == weight).all()


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_code_stands_for_its_distance_from_the_zero_point(element: DType) -> None:
    codes = np.arange(2**element.bits, dtype=np.uint8)[:, None]
    scale = Fraction(3, 1024)
    for zero in [element.bias] if element.bias else range(2**element.bits):
        zeros = None if element.bias else np.array([[zero]], np.uint8)
        weights = dequantize(Affine(element, codes, np.array([[float(scale)]], np.float16), zeros, -1))
        assert [Fraction(float(w)) for w in weights[:, 0]] == [(c - zero) * scale for c in range(len(codes))]


def test_known_answers() -> None:
    # Range -1 .. 2.75 in 15 steps of 1/4: zero point 4; 0.125 and 0.375 are ties and go to the even step.
    weight = np.array([-1, 2.75, 0, 0.125, 0.375, -0.125, 0.5], np.float32)[:, None]
    quantized = quantize(weight, U4, -1)
    assert quantized.scales.tolist() == [[0.25]]
    assert quantized.zeros is not None
    assert quantized.zeros.tolist() == [[4]]
    assert quantized.codes[:, 0].tolist() == [0, 15, 4, 4, 6, 4, 6]
    # A range of one sign is widened to zero, which is its first or last code; the step is 51 / 255 = 0.2.
    positive, negative = quantize([[1.0], [51.0]], U8, -1, F32), quantize([[-1.0], [-51.0]], U8, -1, F32)
    assert positive.zeros == np.array([[0]])
    assert positive.codes.tolist() == [[5], [255]]
    assert negative.zeros == np.array([[255]])
    assert negative.codes.tolist() == [[250], [0]]
    # u8b128: -128 and 127 steps of 1/64.
    quantized = quantize(np.array([-2, 127 / 64, 1 / 128, 3 / 128])[:, None], U8B128, -1)
    assert quantized.scales.tolist() == [[1 / 64]]
    assert quantized.zeros is None
    assert quantized.codes[:, 0].tolist() == [0, 255, 128, 130]


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_dequantizing_in_float32_is_exact(element: DType) -> None:
    rng = np.random.default_rng(0)
    scales = rng.integers(0, 2**15, (1, 64)).astype(np.uint16).view(ml_dtypes.bfloat16)
    scales = np.where(np.isfinite(scales.astype(np.float32)), scales, 1).astype(ml_dtypes.bfloat16)
    zeros = None if element.bias else rng.integers(0, 2**element.bits, (1, 64), dtype=np.uint8)
    weight = Affine(element, rng.integers(0, 2**element.bits, (48, 64), dtype=np.uint8), scales, zeros, -1)
    exact, single = dequantize(weight, np.float64), dequantize(weight, np.float32)
    small = np.abs(exact) < 3e38
    assert small.any() and (exact[small] == single[small]).all()


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
@pytest.mark.parametrize("value", [0.0, 1e-12, -1e-12, 2.0**-149])
def test_zeros_and_groups_below_the_smallest_scale_become_zero(element: DType, value: float) -> None:
    assert (dequantize(quantize(np.full((40, 2), value), element, 32)) == 0).all()


def test_a_scale_rounded_down_saturates() -> None:
    # The scale 2.5 * 2^-24 is a tie of f16's subnormals and becomes 2 * 2^-24: 8.75 steps, 7 of them kept.
    quantized = quantize(np.array([[17.5 * 2.0**-24], [0]]), U4B8, -1)
    assert quantized.scales.astype(float).tolist() == [[2.0**-23]]
    assert quantized.codes[:, 0].tolist() == [15, 8]


def test_experts_are_quantized_one_by_one() -> None:
    weight = random_weights(3, 3, 40, 4)
    whole = quantize(weight, U4, 16)
    assert whole.zeros is not None
    for expert in range(3):
        one = quantize(weight[expert], U4, 16)
        assert (whole.codes[expert] == one.codes).all()
        assert (whole.zeros[expert] == one.zeros).all()
        assert (dequantize(whole)[expert] == dequantize(one)).all()


@pytest.mark.parametrize(
    ("weight", "element", "group", "words"),
    [
        ([[np.nan]], U4, -1, "finite"),
        ([[np.inf]], U8, -1, "finite"),
        ([[1e39]], U8, -1, "finite"),
        ([[1e30]], U8B128, -1, "beyond f16"),
        (np.zeros(16), U4, -1, r"\(16,\)"),
        (np.zeros((0, 16)), U4, -1, "empty"),
        ([[1.0]], U4, 0, "got 0"),
        ([[1.0]], U4, -2, "got -2"),
        ([[1.0]], E4M3FN, -1, "e4m3fn is no type"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    weight: np.ndarray, element: DType, group: int, words: str
) -> None:
    with pytest.raises(WeightError, match=words):
        quantize(weight, element, group)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    codes, scales = np.zeros((48, 4), np.uint8), np.ones((2, 4), np.float16)
    zeros = np.zeros((2, 4), np.uint8)
    Affine(U4, codes, scales, zeros, 32)
    for element, parts, words in [
        (U4, (codes + np.uint8(16), scales, zeros), "0 to 15"),
        (U4, (codes, scales, zeros + np.uint8(16)), "0 to 15"),
        (U4, (codes, scales, None), "needs zero points"),
        (U4, (codes, scales, zeros[:1]), r"\(2, 4\)"),
        (U4B8, (codes, scales, zeros), "must be None"),
        (U8, (codes.astype(np.int8), scales, zeros), "int8"),
        (U8, (codes, scales[:1], zeros), r"\(2, 4\)"),
        (U8, (codes, scales.astype(np.float64), zeros), "float64"),
        (U8, (codes, scales * np.float16(np.inf), zeros), "finite"),
    ]:
        with pytest.raises(WeightError, match=words):
            Affine(element, *parts, 32)
