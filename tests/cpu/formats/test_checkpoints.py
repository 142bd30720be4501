"""Reading GPTQ and compressed-tensors layers gives what quantizing directly gave."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.errors import WeightError
from billhook.formats import compressed_tensors, gptq
from billhook.formats.u4b8 import Quantized, count_groups


def draw(k: int, n: int, group: int, seed: int) -> Quantized:
    rng = np.random.default_rng(seed)
    scales = rng.standard_normal((count_groups(k, group), n)).astype(np.float16)
    return Quantized(rng.integers(0, 16, (k, n), dtype=np.uint8), scales, group)


def join(codes: np.ndarray) -> np.ndarray:
    """Join each eight neighbours of the last axis into an int32, the first in the lowest bits."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint64)
    words = sum(parts[..., i] << np.uint64(4 * i) for i in range(8))
    return np.asarray(words).astype(np.uint32).view(np.int32)


@settings(max_examples=40)
@given(
    k=st.integers(1, 20).map(lambda count: 8 * count),
    n=st.integers(1, 8).map(lambda count: 8 * count),
    group=st.sampled_from([-1, 32, 64, 128]),
    version=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gptq_layers_read_back(k: int, n: int, group: int, version: int, seed: int) -> None:
    want = draw(k, n, group, seed)
    zeros = join(np.full((len(want.scales), n), 7 if version == 1 else 8))
    order = np.zeros(k, np.int32) if group == -1 else (np.arange(k) // group).astype(np.int32)
    qweight = np.ascontiguousarray(join(want.codes.T).T)
    got = gptq.read(qweight, want.scales, zeros, order, group_size=group, version=version)
    assert (got.codes == want.codes).all()
    assert (got.scales == want.scales).all()


@settings(max_examples=40)
@given(
    k=st.integers(1, 160), n=st.integers(1, 40), group=st.sampled_from([-1, 32, 128]), seed=st.integers(0, 99)
)
def test_compressed_tensors_layers_read_back(k: int, n: int, group: int, seed: int) -> None:
    want = draw(k, n, group, seed)
    padded = np.zeros((n, -(-k // 8) * 8), np.uint8)
    padded[:, :k] = want.codes.T
    got = compressed_tensors.read(join(padded), want.scales.T, k=k, group_size=group)
    assert (got.codes == want.codes).all()
    assert (got.scales == want.scales).all()


def test_the_first_code_is_in_the_lowest_nibble() -> None:
    qweight = np.array([[0x76543210]], np.int32)
    got = gptq.read(qweight, np.ones((1, 1), np.float16), group_size=-1)
    assert got.codes[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_an_asymmetric_zero_point_is_named() -> None:
    codes = np.full((1, 16), 7)
    codes[0, 11] = 3
    layer = draw(64, 16, -1, 0)
    qweight = np.ascontiguousarray(join(layer.codes.T).T)
    with pytest.raises(WeightError, match="channel 11 holds 3"):
        gptq.read(qweight, layer.scales, join(codes), group_size=-1)


@pytest.mark.parametrize(("version", "stored"), [(1, 8), (2, 7)])
def test_the_other_version_is_recognised(version: int, stored: int) -> None:
    layer = draw(64, 16, -1, 0)
    qweight = np.ascontiguousarray(join(layer.codes.T).T)
    with pytest.raises(WeightError, match=f"reads as version {3 - version}"):
        gptq.read(qweight, layer.scales, join(np.full((1, 16), stored)), group_size=-1, version=version)


def test_act_order_is_refused_in_words() -> None:
    layer = draw(64, 16, 32, 0)
    order = (np.arange(64) // 32).astype(np.int32)
    order[[3, 40]] = order[[40, 3]]
    qweight = np.ascontiguousarray(join(layer.codes.T).T)
    with pytest.raises(WeightError, match=r"input feature 3 into group 1.*act-order"):
        gptq.read(qweight, layer.scales, None, order, group_size=32)


def test_wrong_shapes_and_types_are_refused() -> None:
    layer = draw(64, 16, 32, 0)
    qweight = np.ascontiguousarray(join(layer.codes.T).T)
    with pytest.raises(WeightError, match="int64"):
        gptq.read(qweight.astype(np.int64), layer.scales, group_size=32)
    with pytest.raises(WeightError, match="version must be 1 or 2"):
        gptq.read(qweight, layer.scales, group_size=32, version=3)
    with pytest.raises(WeightError, match=r"must be \(1, 16\)"):
        gptq.read(qweight, layer.scales, group_size=64)
    with pytest.raises(WeightError, match=r"qzeros must be int32 \(2, 2\)"):
        gptq.read(qweight, layer.scales, np.zeros((2, 3), np.int32), group_size=32)
    with pytest.raises(WeightError, match="one entry for each of k=64"):
        gptq.read(qweight, layer.scales, None, np.zeros(63, np.int32), group_size=32)
    with pytest.raises(WeightError, match="for k=65"):
        compressed_tensors.read(np.zeros((16, 8), np.int32), layer.scales.T, k=65, group_size=32)
    with pytest.raises(WeightError, match=r"weight_scale must be \[n, groups\]"):
        compressed_tensors.read(np.zeros((16, 8), np.int32), np.ones(16, np.float16), k=64, group_size=-1)
