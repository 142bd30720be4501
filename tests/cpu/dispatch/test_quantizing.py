"""The quantizing kernels, run on the CPU by the call that launches them, against the host's quantization."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu.dispatch import quantizers
from cpu.dispatch.quantizers import TIES, TYPES, draw

from billhook.dispatch import quantizing
from billhook.dtypes import BF16, E4M3FN, F16, F32, S8, DType
from billhook.formats import activations as oracle

TARGETS = ("7.5", "9.0a")  # shuffles and e4m3 by integer arithmetic; instructions
GUARD = 64  # bytes before and behind what kernels write

each_code = pytest.mark.parametrize("code", [E4M3FN, S8], ids=str)
each_type = pytest.mark.parametrize("element", TYPES, ids=str)


@pytest.fixture(scope="module", params=TARGETS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quantizers.build(tmp_path_factory.mktemp("kernels"), request.param)


@pytest.fixture(autouse=True)
def on_cpu(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "launch_kernel", quantizers.launcher(library))


def place(shape: tuple[int, ...], dtype: Any, shift: int = 0) -> np.ndarray:
    """Return memory full of 0xEE, like what is around it, `shift` bytes behind a multiple of 16."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(size + 2 * GUARD + 32, 0xEE, np.uint8)
    start = GUARD - (memory.ctypes.data + GUARD) % -16 + shift
    return memory[start : start + size].view(dtype).reshape(shape)


def check_around(array: np.ndarray) -> None:
    memory: Any = array.base
    while memory.base is not None:
        memory = memory.base
    start = array.ctypes.data - memory.ctypes.data
    assert (memory[:start] == 0xEE).all() and (memory[start + array.nbytes :] == 0xEE).all()


def run(
    x: np.ndarray,
    element: DType,
    code: DType,
    *,
    scale: float | None = None,
    on_gpu: bool = False,
    padding: int = 0,
    shift: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales of activations whose rows lie `padding` elements apart."""
    rows, k = x.shape
    held = place((rows, k + padding), x.dtype, shift * x.itemsize)
    held[:, :k] = x
    given = np.array([scale or 0], np.float32)
    codes, scales = place((rows, k), np.int8 if code == S8 else np.uint8), place((rows, 1), np.float32)
    stride = held.strides[0]
    quantizing.launch_quantize(
        SimpleNamespace(name=f"quantize_{element}_{code}", sms=1, ctas_per_sm=3),
        0,
        x=held.ctypes.data,
        codes=codes.ctypes.data,
        scales=scales.ctypes.data,
        given=given.ctypes.data if on_gpu else 0,
        stride_bytes=stride,
        rows=rows,
        k=k,
        number=0.0 if scale is None or on_gpu else scale,
        aligned=(held.ctypes.data | stride | k * x.itemsize) % quantizing.CHUNK == 0,
    )
    check_around(codes)
    check_around(scales)
    return codes, scales


def check(x: np.ndarray, element: DType, code: DType, scale: float | None = None, **options: Any) -> None:
    """Fail unless codes and scales are the host's, to the bit."""
    codes, scales = run(x, element, code, scale=scale, **options)
    numbers = x.astype(np.float32)
    want = (
        oracle.quantize_dynamic(numbers, code)
        if scale is None
        else oracle.quantize_static(numbers, scale, code)
    )
    assert scales.tobytes() == np.broadcast_to(want.scales, scales.shape).tobytes()
    wrong = np.argwhere(codes != want.codes)
    assert len(wrong) == 0, [(x[tuple(at)], codes[tuple(at)], want.codes[tuple(at)]) for at in wrong[:4]]


@each_code
@each_type
@pytest.mark.parametrize("k", [1, 7, 96, 257, 1000])
def test_codes_and_scales_are_the_host_s(element: DType, code: DType, k: int) -> None:
    check(draw(9, k, element), element, code)


@each_code
@each_type
@pytest.mark.parametrize(("padding", "shift"), [(16, 0), (3, 0), (0, 1), (16, 1)])
def test_rows_may_lie_anywhere(element: DType, code: DType, padding: int, shift: int) -> None:
    check(draw(5, 64, element, seed=1), element, code, padding=padding, shift=shift)


@each_code
@each_type
def test_tokens_longer_than_what_a_cta_holds_are_read_in_parts(element: DType, code: DType) -> None:
    for k in (2 * 16384 + 160, 2049, 2 * 2048 + 1):
        x = draw(2, k, element, seed=2)
        for at in (0, k // 2, k - 1):  # the largest magnitude in any part
            x[0, at] = -77 - at // 100
            check(x, element, code)


@each_code
@each_type
@pytest.mark.parametrize("on_gpu", [False, True])
def test_static_scales(element: DType, code: DType, on_gpu: bool) -> None:
    x = draw(9, 128, element, seed=3)
    for scale in (1.0, 0.0123, 2.0**-4, 3e-3, 2.0**-149, 3e-45, 1e-39, 2.0**-66, 2.0**66, 3e38):
        check(x, element, code, scale, on_gpu=on_gpu)
    check(draw(3, 5, element, seed=4), element, code, 0.25, on_gpu=on_gpu)


@each_code
@each_type
def test_no_quotient_beside_a_tie_is_taken_for_one(element: DType, code: DType) -> None:
    """The scale is the one nearest to x / tie, so that the exact quotient is a tie or as close as can be."""
    rng = np.random.default_rng(5)
    for exponent in (0, 30, -40) if element != F16 else (0,):
        numbers = (np.exp2(rng.uniform(-2, 2, 48) + exponent)).astype(TYPES[element]).astype(np.float64)
        for number, tie in zip(numbers, rng.choice(TIES[code], 48), strict=True):
            scale = float(np.float32(number / tie))
            x = np.array([[number, -number, number / 2, number * 2, 0]]).astype(TYPES[element])
            check(x, element, code, scale)


@each_code
def test_numbers_one_unit_around_every_tie(code: DType) -> None:
    rng = np.random.default_rng(6)
    exponents = [*rng.uniform(-8, 8, 6), -130, -147.3, 64.5, *rng.uniform(127.9, 127.999, 12)]
    for scale in np.exp2(exponents).astype(np.float32):
        middle = TIES[code] * np.float64(scale)
        middle = middle[middle < 2.0**127].astype(np.float32)
        around = [middle]
        for direction in (-np.inf, np.inf):
            step = middle
            for _ in range(3):
                step = np.nextafter(step, np.float32(direction))
                around.append(step)
        x = np.stack(around)
        check(np.concatenate([x, -x]), F32, code, float(scale))


@each_code
@pytest.mark.parametrize("element", [BF16, F32], ids=str)
def test_own_scales_that_put_quotients_beside_ties(element: DType, code: DType) -> None:
    """Half the largest is 63.5 steps of s8, 3 / 64 of it 21 of e4m3, but for the rounding of the scale."""
    rng = np.random.default_rng(7)
    largest = rng.integers(33, 64, (64, 1)) * np.exp2(rng.integers(-40, 40, (64, 1)).astype(float))
    shares = np.array([1, 1 / 2, -1 / 2, 3 / 64, -3 / 64, 3 / 32, 3 / 128, 0])
    check((largest * shares).astype(TYPES[element]), element, code)


@each_code
@each_type
def test_what_is_not_finite_stays_in_its_own_token(element: DType, code: DType) -> None:
    x = draw(4, 96, element, seed=8)
    x[0, 5], x[2, 90] = np.nan, -np.inf
    codes, scales = run(x, element, code)
    assert np.isnan(scales[0]) and scales[2] == np.inf
    want = oracle.quantize_dynamic(x[[1, 3]].astype(np.float32), code)
    assert (scales[[1, 3]] == want.scales).all() and (codes[[1, 3]] == want.codes).all()
    if code == E4M3FN:
        assert (codes[0] == 0x7F).all()
    x[3, 0] = np.inf
    codes, _ = run(x, element, code, scale=0.5)
    assert codes[0, 5] == (0x7F if code == E4M3FN else 0)
    assert (codes[2, 90], codes[3, 0]) == ((0xFE, 0x7E) if code == E4M3FN else (-128, 127))


def test_a_scale_of_zero_on_the_gpu_gives_codes_of_zero() -> None:
    x = draw(3, 32, BF16, seed=9)
    for code in (E4M3FN, S8):
        codes, scales = run(x, BF16, code, scale=0.0, on_gpu=True)
        assert not codes.any() and not scales.any()
