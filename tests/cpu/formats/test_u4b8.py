"""Quantizing to u4b8 and back."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billhook.dtypes import BF16, F16, F32, U4B8, DType
from billhook.errors import InputError, WeightError
from billhook.formats.elements import numpy_dtype, rounding
from billhook.formats.u4b8 import Quantized, count_groups, dequantize, quantize

GROUPS = st.sampled_from([-1, 32, 64, 128])
SEEDS = st.integers(0, 2**32 - 1)


@given(
    k=st.integers(1, 200),
    n=st.integers(1, 40),
    group=GROUPS,
    element=st.sampled_from([F16, BF16]),
    seed=SEEDS,
)
def test_no_weight_is_off_by_more_than_half_a_step(
    k: int, n: int, group: int, element: DType, seed: int
) -> None:
    weight = np.random.default_rng(seed).standard_normal((k, n)).astype(np.float32)
    quantized = quantize(weight, group, element)
    assert quantized.codes.shape == (k, n)
    assert quantized.scales.shape == (count_groups(k, group), n)
    assert quantized.scales.dtype == numpy_dtype(element)
    size = k if group == -1 else group
    steps = quantized.scales.astype(np.float64)[np.arange(k) // size]
    # Half a step, plus what the range loses (at most 8 steps) when the scale is rounded down.
    allowed = steps * (0.5 + 8 * rounding(element).unit)
    assert (np.abs(dequantize(quantized, np.float64) - weight) <= allowed).all()


def test_a_group_that_reaches_both_ends_uses_all_sixteen_codes() -> None:
    weight = np.arange(-8, 8, dtype=np.float32).reshape(16, 1) / 4
    quantized = quantize(weight, -1)
    assert quantized.codes[:, 0].tolist() == list(range(16))
    assert quantized.scales[0, 0] == 0.25
    assert (dequantize(quantized) == weight).all()


def test_zeros_and_values_below_the_smallest_scale_become_zero() -> None:
    for weight in (np.zeros((32, 4)), np.full((32, 4), 1e-12)):
        quantized = quantize(weight, 32, F16)
        assert (quantized.codes == 8).all()
        assert (dequantize(quantized) == 0).all()


def test_dequantizing_in_float32_is_exact() -> None:
    rng = np.random.default_rng(0)
    scales = rng.integers(0, 2**15, (1, 64)).astype(np.uint16).view(ml_dtypes.bfloat16)
    scales = np.where(np.isfinite(scales.astype(np.float32)), scales, 1).astype(ml_dtypes.bfloat16)
    quantized = Quantized(rng.integers(0, 16, (48, 64), dtype=np.uint8), scales, -1)
    small = np.abs(scales.astype(np.float64)) < 1e37  # eight times the largest scales overflow float32
    exact, single = dequantize(quantized, np.float64), dequantize(quantized, np.float32)
    assert (np.where(small, exact, 0) == np.where(small, single, 0)).all()


def test_experts_are_quantized_one_by_one() -> None:
    weight = np.random.default_rng(1).standard_normal((3, 80, 16))
    whole = quantize(weight, 32)
    for expert in range(3):
        one = quantize(weight[expert], 32)
        assert (whole.codes[expert] == one.codes).all()
        assert (whole.scales[expert] == one.scales).all()


@pytest.mark.parametrize(
    ("weight", "group", "words"),
    [
        (np.full((16, 16), np.nan), 32, "finite"),
        (np.full((16, 16), 1e30), 32, "beyond f16"),
        (np.zeros(16), 32, r"\(16,\)"),
        (np.zeros((16, 16)), 0, "got 0"),
        (np.zeros((16, 16)), -2, "got -2"),
    ],
)
def test_what_cannot_be_quantized_is_refused(weight: np.ndarray, group: int, words: str) -> None:
    with pytest.raises(WeightError, match=words):
        quantize(weight, group)


def test_codes_and_scales_must_fit_each_other() -> None:
    codes = np.zeros((64, 16), np.uint8)
    with pytest.raises(WeightError, match=r"must be \(2, 16\)"):
        Quantized(codes, np.zeros((3, 16), np.float16), 32)
    with pytest.raises(WeightError, match="int8"):
        Quantized(codes.astype(np.int8), np.zeros((2, 16), np.float16), 32)


def test_the_numbers_of_a_type_are_those_of_its_definition() -> None:
    assert rounding(F16) == type(rounding(F16))(2.0**-11, 2.0**-25, 65504.0)
    assert rounding(BF16).unit == 2.0**-8
    assert rounding(F32).unit == 2.0**-24
    with pytest.raises(InputError, match="u4b8"):
        numpy_dtype(U4B8)
