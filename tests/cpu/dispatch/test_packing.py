"""The packing kernels, run on the CPU by the calls that launch them, against the host's packing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cpu.dispatch import packers

from billhook.dispatch import packing
from billhook.dtypes import E4M3FN, U4, U4B8, U8, U8B128, DType
from billhook.formats import pack

SHAPES = [(16, 16), (64, 64), (80, 144), (144, 80), (128, 128), (336, 208)]  # k, n


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return packers.build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(autouse=True)
def on_cpu(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "launch_kernel", packers.launcher(kernels))


def aligned(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy that begins at a multiple of 16 bytes."""
    memory = np.zeros(array.nbytes + 16, np.uint8)
    start = -memory.ctypes.data % 16
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def join(codes: np.ndarray, bits: int) -> np.ndarray:
    """Put consecutive codes of the last axis into words, lowest bits first."""
    each = 32 // bits
    fields = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint64)
    return (fields << (np.arange(each, dtype=np.uint64) * np.uint64(bits))).sum(-1).astype(np.uint32)


def forms(codes: np.ndarray, bits: int) -> dict[str, np.ndarray]:
    """Return kernel -> the codes [.., k, n] as it expects them."""
    rows = np.ascontiguousarray(codes.swapaxes(-1, -2))
    found = {
        f"pack_bytes_kn_{bits}": codes,
        f"pack_bytes_nk_{bits}": rows,
        f"pack_gptq_{bits}": join(rows, bits).swapaxes(-1, -2),
    }
    if bits == 4:
        eights = codes.reshape(*codes.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        found |= {"pack_nibbles_nk_4": join(rows, 4), "pack_awq_4": join(eights.reshape(codes.shape), 4)}
    return found


def run_codes(
    kernel: str, stored: np.ndarray, shape: tuple[int, ...], element: DType, order: np.ndarray | None = None
) -> tuple[np.ndarray, bool]:
    """Return the packed codes of a weight [.., k, n], and whether the kernel refused one."""
    *experts, k, n = shape
    source, refused = aligned(stored), np.zeros(1, np.int32)
    packed = aligned(np.full((*experts, *pack.code_shape(n, k, element.bits)), 0xDEADBEEF, np.uint32))
    packing.launch_pack_codes(
        kernel,
        0,
        source=source.ctypes.data,
        packed=packed.ctypes.data,
        refused=refused.ctypes.data,
        order=0 if order is None else order.ctypes.data,
        experts=experts[0] if experts else 1,
        n=n,
        k=k,
        zero=element.bias,
        refuse_nan=element == E4M3FN,
    )
    return packed, bool(refused[0])


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("element", [U4, U4B8, U8, U8B128, E4M3FN], ids=str)
def test_codes_are_packed_as_on_the_host(element: DType, experts: int) -> None:
    rng = np.random.default_rng(0)
    for size in SHAPES:
        shape = (experts, *size) if experts else size
        codes = rng.integers(0, 2**element.bits, shape, dtype=np.uint8)
        if element == E4M3FN:
            codes[(codes & 0x7F) == 0x7F] = 0
        want = pack.pack_codes(codes, element)
        for kernel, stored in forms(codes, element.bits).items():
            got, refused = run_codes(kernel, stored, shape, element)
            assert not refused and (got == want).all(), f"{kernel} {shape}"


@pytest.mark.parametrize("element", [U4, U8B128], ids=str)
def test_codes_in_act_order_are_packed_as_on_the_host(element: DType) -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        codes = rng.integers(0, 2**element.bits, shape, dtype=np.uint8)
        order = rng.permutation(shape[0]).astype(np.int32)
        want = pack.pack_codes(codes[order], element)
        found = forms(codes, element.bits)
        for name in ("gptq", "nibbles_nk" if element.bits == 4 else "bytes_nk"):
            stored = found[f"pack_{name}_{element.bits}"]
            got, _ = run_codes(f"pack_{name}_ordered_{element.bits}", stored, shape, element, order)
            assert (got == want).all(), f"{name} {shape}"


@pytest.mark.parametrize(
    ("element", "values"), [(U4B8, (16, 255)), (E4M3FN, (0x7F, 0xFF)), (U8, ())], ids=str
)
def test_codes_out_of_range_are_refused_wherever_they_are(element: DType, values: tuple[int, ...]) -> None:
    shape = (80, 144)
    for value in (*values, 0x7E if element == E4M3FN else 2**element.bits - 1):
        for at in ((0, 0), (79, 143), (37, 90), (66, 5)):
            codes = np.zeros(shape, np.uint8)
            codes[at] = value
            for name, stored in (("kn", codes), ("nk", codes.T)):
                _, refused = run_codes(f"pack_bytes_{name}_{element.bits}", stored, shape, element)
                assert refused == (value in values)


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_scales_are_packed_as_on_the_host(dtype: type, experts: int) -> None:
    rng = np.random.default_rng(0)
    for k, n in (*SHAPES, (2064, 80)):
        for group in (-1, 16, 32, 128):
            groups = pack.count_groups(k, group)
            head = (experts,) if experts else ()
            scales = rng.integers(0, 256, (*head, groups, n)).astype(dtype)
            want = pack.pack_scales(scales, k, group)
            rows = np.ascontiguousarray(scales.swapaxes(-1, -2)).swapaxes(-1, -2)
            for source in (scales, rows):
                packed = np.full(want.shape, 77, dtype)
                strides = [stride // source.itemsize for stride in source.strides]
                packing.launch_pack_scales(
                    f"pack_scales_{8 * source.itemsize}",
                    0,
                    source=source.ctypes.data,
                    packed=packed.ctypes.data,
                    experts=experts or 1,
                    strides=(strides[0] if experts else 0, *strides[-2:]),
                    n=n,
                    groups=groups,
                    packed_groups=want.shape[-2],
                )
                assert (packed == want).all(), f"k={k} n={n} group={group}"
