"""The reference, and the bound within which a kernel must stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.dtypes import BF16, E4M3FN, F16, S8, U4B8, DType
from billhook.errors import WeightError
from billhook.formats import reference
from billhook.formats.affine import Affine, dequantize
from billhook.formats.blocks import count_groups
from billhook.formats.elements import numpy_dtype

SEEDS = st.integers(0, 2**32 - 1)


def draw(m: int, n: int, k: int, *, group: int, element: DType, seed: int) -> tuple[np.ndarray, Affine]:
    rng = np.random.default_rng(seed)
    kind = numpy_dtype(element)
    scales = rng.uniform(-1, 1, (count_groups(k, group), n)).astype(kind)
    quantized = Affine(U4B8, rng.integers(0, 16, (k, n), dtype=np.uint8), scales, None, group)
    return rng.standard_normal((m, k)).astype(kind), quantized


@settings(max_examples=40)
@given(
    m=st.integers(1, 5),
    n=st.integers(1, 20),
    k=st.integers(1, 20).map(lambda count: 16 * count),
    group=st.sampled_from([-1, 32, 128]),
    element=st.sampled_from([F16, BF16]),
    rounded=st.booleans(),
    seed=SEEDS,
)
def test_a_float32_gemm_rounded_once_is_within_the_bound(
    *, m: int, n: int, k: int, group: int, element: DType, rounded: bool, seed: int
) -> None:
    a, quantized = draw(m, n, k, group=group, element=element, seed=seed)
    kind = numpy_dtype(element)
    ref = reference.gemm(a, dequantize(quantized, np.float64))
    weight = dequantize(quantized)
    if rounded:
        weight = weight.astype(kind).astype(np.float32)
    total = np.zeros((m, n), np.float32)
    for column in range(k):  # the worst order: one after another
        total += a[:, column, None].astype(np.float32) * weight[column]
    bound = reference.error_bound(k, group, element, rounded)
    error = np.abs(total.astype(kind).astype(np.float64) - ref.value)
    assert (error <= bound.allowed(ref.value, ref.magnitude, ref.activations)).all()


@pytest.mark.parametrize("element", [F16, BF16])
def test_one_lost_product_is_outside_the_bounds(element: DType) -> None:
    k = 256
    a, quantized = draw(16, 64, k, group=128, element=element, seed=0)
    weight = dequantize(quantized, np.float64)
    ref = reference.gemm(a, weight)
    bound = reference.error_bound(k, 128, element, rounded_weights=False)
    weight[k // 2] = 0
    error = np.abs(reference.gemm(a, weight).value - ref.value)
    assert (error > bound.allowed(ref.value, ref.magnitude, ref.activations)).any()
    assert np.sqrt((error**2).mean() / (ref.value**2).mean()) > bound.rms


def test_rounding_weights_and_longer_sums_widen_the_bound() -> None:
    plain = reference.error_bound(4096, 128, BF16, rounded_weights=False)
    rounded = reference.error_bound(4096, 128, BF16, rounded_weights=True)
    longer = reference.error_bound(8192, 128, BF16, rounded_weights=False)
    assert plain.value == rounded.value == 2.0**-8
    assert rounded.magnitude > plain.magnitude + 0.9 * 2.0**-8
    assert plain.magnitude < longer.magnitude < 2.1 * plain.magnitude
    assert rounded.activations > plain.activations == 0


@settings(max_examples=30)
@given(tokens=st.integers(0, 6), experts=st.integers(1, 5), top_k=st.integers(1, 3), seed=SEEDS)
def test_moe_is_a_gemm_per_row(tokens: int, experts: int, top_k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, weights = rng.standard_normal((tokens, 32)), rng.standard_normal((experts, 32, 8))
    bias, factors = rng.standard_normal((experts, 8)), rng.standard_normal((tokens, top_k))
    ids = rng.integers(-1, experts, (tokens, top_k))
    got = reference.moe_gemm(a, weights, ids, factors, bias)
    assert got.value.shape == (tokens * top_k, 8)
    for token, slot in np.ndindex(tokens, top_k):
        expert, row = ids[token, slot], token * top_k + slot
        if expert < 0:
            assert not got.value[row].any() and not got.magnitude[row].any()
            continue
        one = reference.gemm(a[token : token + 1], weights[expert], bias[expert])
        assert np.allclose(got.value[row], one.value[0] * factors[token, slot])
        assert np.allclose(got.magnitude[row], one.magnitude[0] * abs(factors[token, slot]))


def test_different_k_is_refused() -> None:
    with pytest.raises(WeightError, match="k=3, weights k=4"):
        reference.gemm(np.zeros((2, 3)), np.zeros((4, 5)))


@settings(max_examples=40)
@given(
    k=st.integers(1, 40).map(lambda count: 16 * count),
    group=st.sampled_from([-1, 32, 64, 128]),
    element=st.sampled_from([F16, BF16]),
    seed=SEEDS,
)
def test_integer_sums_that_are_scaled_in_float32_are_within_the_bound(
    *, k: int, group: int, element: DType, seed: int
) -> None:
    """As kernels add them: all of k with channel scales, else a group within a block of 64."""
    _, quantized = draw(1, 8, k, group=group, element=element, seed=seed)
    a = np.random.default_rng(seed).integers(-128, 128, (3, k))
    size = k if group == -1 else min(group, 64)
    total = np.zeros((3, 8), np.float32)
    for first in range(0, k, size):
        part = slice(first, first + size)
        products = a[:, part] @ (quantized.codes[part].astype(np.int64) - 8)
        scales = quantized.scales[0 if group == -1 else first // group].astype(np.float64)
        total = (products * scales + total).astype(np.float32)
    ref = reference.gemm(a, dequantize(quantized, np.float64))
    bound = reference.error_bound(k, group, element, rounded_weights=False, activations=S8)
    off = np.abs(total.astype(numpy_dtype(element)).astype(np.float64) - ref.value)
    assert (off <= bound.allowed(ref.value, ref.magnitude, ref.activations)).all()


def test_sums_of_e4m3_lose_by_the_length_of_what_tensor_cores_add() -> None:
    def lost(k: int, group: int) -> float:
        return reference.error_bound(k, group, BF16, rounded_weights=False, activations=E4M3FN).rms

    assert lost(4096, -1) > lost(2048, -1) > lost(4096, 128) > lost(4096, 32)
    assert lost(4096, 128) == lost(2048, 128) == lost(128, -1)
