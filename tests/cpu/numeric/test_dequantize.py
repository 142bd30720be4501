"""Every code of every format becomes its exact value, in the place of its row and column."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from cpu.numeric import ptx

from billhook.build.toolchain import find_nvrtc
from billhook.dtypes import BF16, E2M1F, E4M3FN, F16, S8, U4, U4B8, U8, U8B128, DType, dtype
from billhook.errors import ToolchainError
from billhook.formats import minifloat, pack
from billhook.weights import FORMATS

PAIRS = [
    (a, one.weight)
    for one in FORMATS.values()
    for a in one.activations
    if one.scale is None or one.weight == E2M1F
]
each_pair = pytest.mark.parametrize(("activations", "weight"), dict.fromkeys(PAIRS), ids=str)


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        find_nvrtc()
    except ToolchainError as error:
        pytest.skip(str(error))


def dequantize(activations: DType, weight: DType) -> str:
    """Return the PTX of `Dequantize`: in: a pair of zero points, then words; out: registers."""
    return ptx.compile_body(
        f"const Fragment f = Dequantize<{activations}, {weight}>::run(in + 1, in[0]);\n"
        "for (i32 r = 0; r < 4; ++r) out[r] = f.r[r];"
    )


def fragments(
    activations: DType, weight: DType, words: npt.NDArray[np.uint32], zeros: npt.NDArray[np.uint32]
) -> npt.NDArray[np.float64]:
    """Return [runs, register, half] for words [runs, bits / 4] and pairs of zero points [runs]."""
    written = ptx.run(dequantize(activations, weight), np.column_stack([zeros, words]))
    return ptx.values(written, f"{activations}x2")


def value(
    weight: DType, codes: npt.NDArray[np.uint8], zeros: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return what codes stand for, by the host's own definition."""
    if weight in (E2M1F, E4M3FN):
        with np.errstate(invalid="ignore"):
            return minifloat.decode(codes, weight).astype(np.float64)
    return codes.astype(np.float64) - (zeros if weight.zero_point else weight.bias)


def codes_of(weight: DType, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Return the codes of [runs, register, half], as docs/layout.md places them."""
    found = np.empty((len(words), 4, 2), np.uint8)
    for register, half in itertools.product(range(4), range(2)):
        word, place = (0, register) if weight.bits == 4 else (register % 2, register // 2)
        shift = np.uint32(weight.bits * place + 16 * half)
        found[:, register, half] = (words[:, word] >> shift) & np.uint32(2**weight.bits - 1)
    return found


def same(got: npt.NDArray[np.float64], want: npt.NDArray[np.float64]) -> None:
    """Fail unless numbers are equal with their signs, that of zero too, and NaN where NaN is wanted."""
    np.testing.assert_array_equal(got, want)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


@each_pair
def test_every_code_is_exact_whatever_its_neighbours_are(activations: DType, weight: DType) -> None:
    rng = np.random.default_rng(7)
    largest, edges = (
        2**weight.bits - 1,
        (0, 2 ** (weight.bits - 1) - 1, 2 ** (weight.bits - 1), 2**weight.bits - 1),
    )
    every = np.arange(largest + 1, dtype=np.uint32)
    runs = []
    for word, place in itertools.product(range(weight.bits // 4), range(32 // weight.bits)):
        mask = np.uint32(largest << weight.bits * place)
        for neighbour in (*edges, None):
            words = np.empty((len(every), weight.bits // 4), np.uint32)
            words[:] = (
                sum(neighbour << at for at in range(0, 32, weight.bits)) if neighbour is not None else 0
            )
            if neighbour is None:
                words[:] = rng.integers(0, 2**32, words.shape, np.uint32)
            words[:, word] = words[:, word] & ~mask | every << np.uint32(weight.bits * place)
            runs.append(words)
    words = np.concatenate(runs)
    zeros = rng.integers(0, largest + 1, (len(words), 2)).astype(np.float64)
    zeros[: largest + 1, 0] = np.arange(largest + 1)
    got = fragments(activations, weight, words, ptx.bits(zeros, f"{activations}x2"))
    rows = np.stack([zeros[:, register % 2] for register in range(4)], axis=1)[..., None]
    same(got, value(weight, codes_of(weight, words), rows))


@pytest.mark.parametrize("weight", [U4, U8], ids=str)
@pytest.mark.parametrize("activations", [F16, BF16], ids=str)
def test_every_difference_of_code_and_zero_point_is_exact(activations: DType, weight: DType) -> None:
    size = 2**weight.bits
    codes, zeros = (one.ravel() for one in np.meshgrid(np.arange(size), np.arange(size)))
    word = sum(codes.astype(np.uint32) << np.uint32(at) for at in range(0, 32, weight.bits))
    words = np.column_stack([word] * (weight.bits // 4))
    pairs = np.column_stack([zeros, size - 1 - zeros]).astype(np.float64)
    got = fragments(activations, weight, words, ptx.bits(pairs, f"{activations}x2"))
    for register in range(4):
        np.testing.assert_array_equal(got[:, register, 0], codes - pairs[:, register % 2])


@each_pair
def test_fragments_of_a_packed_block_are_where_the_mma_wants_them(activations: DType, weight: DType) -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2**weight.bits, (64, 64)).astype(np.uint8)  # [k, n]
    if weight == E4M3FN:
        codes[codes & 0x7F == 0x7F] = 0  # NaN
    packed = pack.pack_codes(codes, weight)[0, 0].reshape(4, weight.bits // 4, 32, 4)
    zeros = np.zeros(32, np.uint32)
    for i, step in itertools.product(range(4), range(4)):
        size = weight.bits // 4
        words = packed[i, step * size // 4, :, step * size % 4 :][:, :size]
        got = fragments(activations, weight, words, zeros)
        for lane, register, half in itertools.product(range(32), range(4), range(2)):
            row = 16 * i + lane // 4 + 8 * (register % 2)
            column = 16 * step + lane % 4 * 2 + 8 * (register // 2) + half
            want = value(weight, codes[column : column + 1, row], np.zeros(1))
            assert got[lane, register, half] == want[0], (i, step, lane, register, half)


def test_every_scale_of_8_bits_is_exact_in_both_halves_of_a_word() -> None:
    e4m3 = np.arange(0x7F, dtype=np.uint32)  # scales have no sign and are no NaN
    powers = np.arange(255, dtype=np.uint32)
    for activations, scale, codes in (
        (F16, "e4m3fn", e4m3),
        (BF16, "e4m3fn", e4m3),
        (BF16, "e8m0fnu", powers),
    ):
        compiled = ptx.compile_body(
            f"for (i32 i = 0; i < 2; ++i) out[i] = ScalePair<{activations}, {scale}>::of(in[0], i);"
        )
        orders = [np.roll(codes, shift) for shift in (0, 1, 50, 100)]
        word = sum(one << np.uint32(8 * at) for at, one in enumerate(orders))
        got = ptx.values(ptx.run(compiled, np.asarray(word)[:, None]), f"{activations}x2").reshape(-1, 4)
        for at, one in enumerate(orders):
            want = (
                np.ldexp(1.0, one.astype(np.int32) - 127)
                if scale == "e8m0fnu"
                else minifloat.decode(one.astype(np.uint8), dtype(scale))
            )
            np.testing.assert_array_equal(got[:, at], want)


def test_the_model_would_see_a_wrong_constant() -> None:
    right = dequantize(BF16, U4B8)
    minus = [str(np.uint32(bits).astype(np.int32)) for bits in (0xC308C308, 0xC309C309)]  # 136, 137
    wrong = right.replace(*minus)
    assert wrong != right
    inputs = np.zeros((1, 2), np.uint32)
    for compiled, expected in ((right, -8.0), (wrong, -9.0)):
        assert ptx.values(ptx.run(compiled, inputs), "bf16x2").tolist() == [[[expected] * 2] * 4]


# Elements of 8 bits stand for a weight's number times this.
UNITS = {
    (E4M3FN, U4B8): 1 / 512,
    (E4M3FN, U4): 1 / 512,
    (E4M3FN, E2M1F): 1 / 64,
    (E4M3FN, E4M3FN): 1,
    (S8, U4B8): 16,
    (S8, U4): 1,
    (S8, U8B128): 1,
}


def test_every_format_has_its_8_bit_elements() -> None:
    formats = FORMATS.values()
    assert set(UNITS) == {
        (a, one.weight) for one in formats for a in one.narrow_activations if not one.folded
    }


@pytest.mark.parametrize(("activations", "weight"), UNITS, ids=str)
def test_every_code_is_an_exact_element_of_8_bits(activations: DType, weight: DType) -> None:
    """In each byte, beside random codes and, if there are any, under each zero point."""
    rng, size = np.random.default_rng(5), 2**weight.bits
    zeros = np.arange(size if weight.zero_point else 1)
    runs = np.array(list(itertools.product(range(size), zeros, range(4))))
    codes = rng.integers(0, size, (len(runs), 4)).astype(np.uint8)
    codes[np.arange(len(runs)), runs[:, 2]] = runs[:, 0]
    words = [codes.view(np.uint32)[:, 0], runs[:, 1].astype(np.uint32) * np.uint32(0x01010101)]
    arguments = "in[0], in[1]" if weight.zero_point else "in[0]"
    body = f"out[0] = Narrow<{activations}, {weight}>::run({arguments});"
    got = ptx.run(ptx.compile_body(body), np.stack(words, axis=1)).view(np.uint8)
    numbers = got.view(np.int8) if activations == S8 else minifloat.decode(got, E4M3FN)
    want = value(weight, codes, runs[:, 1:2].astype(np.float64))
    np.testing.assert_array_equal(numbers.astype(np.float64), want * UNITS[activations, weight])


def test_every_code_times_every_scale_is_rounded_once() -> None:
    """In each byte of a fragment, rows g and g + 8 having scales of their own."""
    body = (
        "FoldedRows rows;\nrows.fill(in[0]);\nconst Fragment f = rows.find(in[1], in[2]);\n"
        "for (i32 r = 0; r < 4; ++r) out[r] = f.r[r];"
    )
    rng = np.random.default_rng(3)
    finite = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    scales = np.repeat(np.stack([finite, rng.permutation(finite)], axis=1), 16, axis=0)  # of both rows
    first = np.tile(np.arange(16, dtype=np.uint8), len(finite))
    codes = (first[:, None] + np.arange(16)) % 16  # every code comes to every place
    codes = rng.permuted(codes, axis=1).astype(np.uint8)
    codes[:, 0], codes[:, 4] = first, first
    nibbles = codes.reshape(-1, 2, 8).astype(np.uint32)  # word, then columns of row g, columns of row g + 8
    words = (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(axis=-1, dtype=np.uint32)
    pair = scales[:, 0].astype(np.uint32) | scales[:, 1].astype(np.uint32) << np.uint32(8) | 0xABCD0000
    got = (
        ptx.run(ptx.compile_body(body, "9.0"), np.column_stack([pair, words]))
        .view(np.uint8)
        .reshape(-1, 4, 4)
    )
    by_row = codes.reshape(-1, 4, 4)  # registers: row g, g + 8, twice
    numbers = by_row.astype(np.float64) - 8
    of_register = minifloat.decode(scales, E4M3FN).astype(np.float64)[:, [0, 1, 0, 1], None]
    want = minifloat.encode(numbers * of_register, E4M3FN)
    zero = (want & 0x7F) == 0  # of either sign
    np.testing.assert_array_equal(np.where(zero, got & 0x7F, got), np.where(zero, 0, want))
