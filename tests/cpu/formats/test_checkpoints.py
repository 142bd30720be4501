"""Reading GPTQ and compressed-tensors layers gives what quantizing directly gave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.dtypes import E4M3FN, U4, U4B8, U8, U8B128, DType
from billhook.errors import WeightError
from billhook.formats import compressed_tensors, gptq, host
from billhook.formats.affine import Affine
from billhook.formats.blocks import count_groups
from billhook.formats.named import Named
from billhook.formats.order import Order, refuse_order

GROUPS = st.sampled_from([-1, 32, 64, 128])
ELEMENTS = st.sampled_from([U4, U4B8, U8, U8B128])


def draw(k: int, n: int, group: int, seed: int, element: DType = U4B8) -> Affine:
    rng = np.random.default_rng(seed)
    shape, top = (count_groups(k, group), n), 2**element.bits
    scales = rng.standard_normal(shape).astype(np.float16)
    zeros = rng.integers(0, top, shape, dtype=np.uint8) if element.zero_point else None
    return Affine(element, rng.integers(0, top, (k, n), dtype=np.uint8), scales, zeros, group)


def join(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    """Join neighbours of the last axis, padded with 0, into int32, the first in the lowest bits."""
    each = 32 // bits
    padded = np.zeros((*codes.shape[:-1], -(-codes.shape[-1] // each) * each), np.uint64)
    padded[..., : codes.shape[-1]] = codes
    parts = padded.reshape(*codes.shape[:-1], -1, each)
    words = sum(parts[..., i] << np.uint64(bits * i) for i in range(each))
    return np.asarray(words).astype(np.uint32).view(np.int32)


def join_rows(codes: np.ndarray, bits: int = 4) -> np.ndarray:
    return np.ascontiguousarray(join(codes.T, bits).T)


def read_gptq(
    qweight: np.ndarray,
    scales: np.ndarray,
    qzeros: np.ndarray | None = None,
    g_idx: np.ndarray | None = None,
    *,
    element: DType = U4B8,
    group_size: int,
    version: int = 1,
) -> tuple[Affine, Order | None]:
    value, order = gptq.read(
        Named("qweight", qweight),
        Named("scales", scales),
        None if qzeros is None else Named("qzeros", qzeros),
        None if g_idx is None else Named("g_idx", g_idx),
        element=element,
        group_size=group_size,
        version=version,
    )
    return host.join(value), order


def read_packed(
    words: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None = None,
    *,
    element: DType = U4B8,
    g_idx: np.ndarray | None = None,
    **sizes: Any,
) -> tuple[Affine, Order | None]:
    value, order = compressed_tensors.read(
        Named("weight_packed", words),
        Named("weight_scale", scales),
        None if zeros is None else Named("weight_zero_point", zeros),
        None if g_idx is None else Named("weight_g_idx", g_idx),
        element=element,
        **sizes,
    )
    return host.join(value), order


def same(got: Affine, want: Affine) -> bool:
    """Return whether two weights hold the same."""
    pairs = ((got.codes, want.codes), (got.scales, want.scales), (got.zeros, want.zeros))
    return got.element == want.element and all(np.array_equal(one, other) for one, other in pairs)


@settings(max_examples=60)
@given(
    k=st.integers(1, 20).map(lambda count: 8 * count),
    n=st.integers(1, 8).map(lambda count: 8 * count),
    group=GROUPS,
    version=st.sampled_from([1, 2]),
    element=ELEMENTS,
    seed=st.integers(0, 2**32 - 1),
)
def test_gptq_layers_read_back(
    *, k: int, n: int, group: int, version: int, element: DType, seed: int
) -> None:
    want, bits = draw(k, n, group, seed, element), element.bits
    zeros = np.full(want.scales.shape, element.bias, np.uint8) if want.zeros is None else want.zeros
    stored = (zeros - np.uint8(version == 1)) & np.uint8(2**bits - 1)
    order = np.zeros(k, np.int32) if group == -1 else (np.arange(k) // group).astype(np.int32)
    qweight, qzeros = join_rows(want.codes, bits), join(stored, bits)
    got, moved = read_gptq(
        qweight, want.scales, qzeros, order, element=element, group_size=group, version=version
    )
    assert same(got, want) and moved is None


@settings(max_examples=60)
@given(k=st.integers(1, 160), n=st.integers(1, 40), group=GROUPS, element=ELEMENTS, seed=st.integers(0, 99))
def test_compressed_tensors_layers_read_back(k: int, n: int, group: int, element: DType, seed: int) -> None:
    want, bits = draw(k, n, group, seed, element), element.bits
    zeros = None if want.zeros is None else np.ascontiguousarray(join(want.zeros, bits).T)
    unordered = np.full(k, -1, np.int32)
    words = join(want.codes.T, bits)
    got, moved = read_packed(
        words, want.scales.T, zeros, element=element, g_idx=unordered, k=k, group_size=group
    )
    assert same(got, want) and moved is None


@settings(max_examples=30)
@given(groups=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_rows_of_act_order_are_put_into_the_order_of_their_groups(groups: int, seed: int) -> None:
    k = 32 * groups
    layer = draw(k, 16, 32, seed)
    g_idx = np.random.default_rng(seed).permutation(np.arange(k) // 32)
    got = read_gptq(join_rows(layer.codes), layer.scales, None, g_idx, group_size=32)
    other = read_packed(join(layer.codes.T), layer.scales.T, g_idx=g_idx, k=k, group_size=32)
    for value, moved in (got, other):
        order = np.arange(k) if moved is None else moved
        assert (np.sort(order) == np.arange(k)).all()
        assert (g_idx[order] == np.arange(k) // 32).all()
        assert (value.codes == layer.codes[order]).all()


def test_the_first_code_is_in_the_lowest_nibble() -> None:
    qweight = np.array([[0x76543210]], np.int32)
    got, _ = read_gptq(qweight, np.ones((1, 1), np.float16), group_size=-1)
    assert got.codes[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_an_asymmetric_zero_point_is_named() -> None:
    codes = np.full((1, 16), 7)
    codes[0, 11] = 3
    layer = draw(64, 16, -1, 0)
    with pytest.raises(WeightError, match=r"qzeros: .* stored as 7 \(got 3 at \[0, 11\]\)"):
        read_gptq(join_rows(layer.codes), layer.scales, join(codes), group_size=-1)


@pytest.mark.parametrize(("version", "stored"), [(1, 8), (2, 7)])
def test_the_other_version_is_recognised(version: int, stored: int) -> None:
    layer = draw(64, 16, -1, 0)
    zeros = join(np.full((1, 16), stored))
    with pytest.raises(WeightError, match=f"are those of gptq.*, version {3 - version},"):
        read_gptq(join_rows(layer.codes), layer.scales, zeros, group_size=-1, version=version)


def test_act_order_is_refused_in_words() -> None:
    layer = draw(64, 16, 32, 0)
    g_idx = (np.arange(64) // 32).astype(np.int32)
    g_idx[[3, 40]] = g_idx[[40, 3]]
    _, order = read_gptq(join_rows(layer.codes), layer.scales, None, g_idx, group_size=32)
    with pytest.raises(WeightError, match=r"g_idx: groups .* in order, since nobody asked \(got 1 at \[3\]"):
        refuse_order(Named("g_idx", g_idx), order, "nobody asked")
    refuse_order(Named("g_idx", g_idx), None, "nobody asked")


def test_wrong_shapes_and_types_are_refused() -> None:
    layer = draw(64, 16, 32, 0)
    qweight, words = join_rows(layer.codes), join(layer.codes.T)
    with pytest.raises(WeightError, match="int64"):
        read_gptq(qweight.astype(np.int64), layer.scales, group_size=32)
    with pytest.raises(WeightError, match="qweight must have 2 axes"):
        read_gptq(qweight[None], layer.scales, group_size=32)
    with pytest.raises(WeightError, match="version must be 1 or 2"):
        read_gptq(qweight, layer.scales, group_size=32, version=3)
    with pytest.raises(WeightError, match=r"must be f16, bf16 or f32 \(1, 16\)"):
        read_gptq(qweight, layer.scales, group_size=64)
    with pytest.raises(WeightError, match=r"qzeros must be int32 \(2, 2\)"):
        read_gptq(qweight, layer.scales, np.zeros((2, 3), np.int32), group_size=32)
    with pytest.raises(WeightError, match="one entry for each of k=64"):
        read_gptq(qweight, layer.scales, None, np.zeros(63, np.int32), group_size=32)
    with pytest.raises(WeightError, match="g_idx must be integers"):
        read_gptq(qweight, layer.scales, None, np.zeros(64, np.float32), group_size=32)
    with pytest.raises(WeightError, match="u4 weights need zeros"):
        read_gptq(qweight, layer.scales, element=U4, group_size=32)
    for read in (
        lambda: read_gptq(qweight, layer.scales, element=E4M3FN, group_size=32),
        lambda: read_packed(words, layer.scales.T, element=E4M3FN, k=64, group_size=32),
    ):
        with pytest.raises(WeightError, match="no type of integer weights"):
            read()
    with pytest.raises(WeightError, match="for k=65"):
        read_packed(words, layer.scales.T, k=65, group_size=32)
    with pytest.raises(WeightError, match=r"weight_scale must be \[n, groups\]"):
        read_packed(words, np.ones(16, np.float16), k=64, group_size=-1)
    with pytest.raises(WeightError, match=r"weight_zero_point must be int32 \(2, 2\)"):
        read_packed(words, layer.scales.T, np.zeros((2, 3), np.int32), element=U4, k=64, group_size=32)
