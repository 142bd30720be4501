"""What a launch asks the driver for, with a driver that only listens."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from billhook.config import KernelConfig, parse_name
from billhook.dispatch import cuda, launch, params, tensor_map, workspace
from billhook.dispatch import gemm as gemms
from billhook.dispatch.gemm import GemmLaunch
from billhook.dispatch.loader import GemmKernel, LoadedKernel
from billhook.errors import CudaError
from billhook.families import threads

CONFIG = parse_name("marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s4_dense_sm90a")
DENSE = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m256n128k64s5_dense_sm90a")
GROUPED = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m256n128k64s5c2_grouped_sm90a")
A, CODES, SCALES, D, M, N, K = 0x1000, 0x2000, 0x3000, 0x4000, 40, 2880, 1104


class Listener:
    """Stands in for cuda-bindings' driver module."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION=6)
    CUlaunchConfig = SimpleNamespace
    CUstream = int

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.launched: list[tuple[Any, bytes]] = []
        self.status: Any = 0
        self.memory = 1 << 32

    @staticmethod
    def CUlaunchAttribute() -> Any:  # noqa: N802 - the driver's name
        return SimpleNamespace(id=None, value=SimpleNamespace())

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == "cuMemAlloc":
                self.memory += 1 << 32
                return 0, self.memory
            return 0, 7

        return call

    def cuGetErrorString(self, status: Any) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"in words"

    def cuLaunchKernelEx(self, description: Any, function: Any, pointers: int, extra: int) -> tuple[Any]:  # noqa: N802
        address = ctypes.c_void_p.from_address(pointers).value
        assert address is not None
        self.launched.append((description, ctypes.string_at(address, params.LAYOUT.size)))
        return (self.status,)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()
    monkeypatch.setattr(cuda, "driver", lambda: listener)
    monkeypatch.setattr(cuda, "primary_context", lambda device: 99)
    monkeypatch.setattr(workspace, "_spaces", {})
    return listener


def kernel(
    sms: int = 132, ctas_per_sm: int = 1, overlaps: bool = True, config: KernelConfig = CONFIG
) -> GemmKernel:
    loaded = LoadedKernel(
        config.name, "handle", 0, threads(config), 1000, sms, ctas_per_sm, overlaps=overlaps
    )
    return GemmKernel(config, loaded)


def start(
    gemm: GemmKernel, *, tiles_m: int = 3, split_k: bool = True, stream: int = 5, capturing: bool = False
) -> None:
    prepare(gemm, tiles_m=tiles_m, split_k=split_k).start(
        stream, capturing, a=A, codes=CODES, scales=SCALES, d=D
    )


def prepare(gemm: GemmKernel, *, tiles_m: int = 3, split_k: bool = True) -> GemmLaunch:
    return GemmLaunch(gemm, tiles_m, m=M, n=N, k=K, lda=K, ldd=N, groups=9, split_k=split_k)


def test_the_arguments_arrive_in_the_order_of_the_struct(driver: Listener) -> None:
    start(kernel())
    ((description, packed),) = driver.launched
    values = dict(zip((*params.POINTERS, *params.NUMBERS), params.LAYOUT.unpack(packed), strict=True))
    assert (values["a"], values["codes"], values["scales"], values["d"]) == (A, CODES, SCALES, D)
    assert (values["m"], values["n"], values["k"], values["lda"], values["ldd"]) == (M, N, K, K, N)
    assert (values["strips"], values["blocks"], values["groups"]) == (45, 18, 9)
    assert (values["split_k"], values["top_k"], values["bias"], values["topk_weights"]) == (1, 1, 0, 0)
    assert values["partials"]
    assert (description.blockDimX, description.sharedMemBytes, description.hStream) == (256, 1000, 5)


def test_the_grid_fills_the_gpu_but_never_outnumbers_the_work(driver: Listener) -> None:
    # 3 tiles of tokens x ceil(45 strips / 2) x ceil(18 blocks / 4) stages.
    stages = 3 * 23 * 5
    for sms, per_sm, split_k, ctas in (
        (132, 1, True, 132),
        (132, 2, True, 132),  # two each would have fewer than four stages
        (40, 2, True, 80),
        (10**6, 1, True, stages),
        (10**6, 1, False, 3 * 23),
    ):
        start(kernel(sms, per_sm), split_k=split_k)
        assert driver.launched[-1][0].gridDimX == ctas


def test_only_kernels_that_wait_themselves_overlap_the_one_before(driver: Listener) -> None:
    start(kernel(overlaps=True))
    (attribute,) = driver.launched[-1][0].attrs
    assert (attribute.id, attribute.value.programmaticStreamSerializationAllowed) == (6, 1)
    start(kernel(overlaps=False))
    assert not hasattr(driver.launched[-1][0], "attrs")


def test_a_launch_description_is_made_once(driver: Listener) -> None:
    prepared = prepare(kernel())
    for stream in (5, 5, 6):
        prepared.start(stream, False, a=A, codes=CODES, scales=SCALES, d=D)
    first, second, other = (description for description, _ in driver.launched)
    assert first is second
    assert (first.hStream, other.hStream) == (5, 6)


def test_a_start_sends_the_addresses_of_its_own_call(driver: Listener) -> None:
    prepared = prepare(kernel())
    prepared.start(5, False, a=A, codes=CODES, scales=SCALES, d=D, bias=0x5000, token_scales=0x6000)
    prepared.start(5, False, a=A + 16, codes=CODES, scales=SCALES, d=D + 16)
    sent = [
        dict(zip((*params.POINTERS, *params.NUMBERS), params.LAYOUT.unpack(packed), strict=True))
        for _, packed in driver.launched
    ]
    assert [(one["a"], one["d"], one["bias"], one["token_scales"]) for one in sent] == [
        (A, D, 0x5000, 0x6000),
        (A + 16, D + 16, 0, 0),
    ]


def test_streams_and_captures_have_workspaces_of_their_own(driver: Listener) -> None:
    start(kernel())
    start(kernel(), stream=6)
    start(kernel(), capturing=True)
    start(kernel())
    at = 8 * params.POINTERS.index("partials")
    assert len({packed[at : at + 8] for _, packed in driver.launched}) == 3


def test_a_workspace_grows_and_begins_as_ones(driver: Listener) -> None:
    small = workspace.workspace(0, 5, False, 1000)
    assert workspace.workspace(0, 5, False, 4 << 20) == small
    large = workspace.workspace(0, 5, False, 100 << 20)
    assert large != small
    fills = [arguments[:3] for name, arguments in driver.calls if name == "cuMemsetD8Async"]
    assert fills == [(small, 0xFF, 4 << 20), (large, 0xFF, 128 << 20)]
    assert not [name for name, _ in driver.calls if name == "cuMemFree"]  # graphs may hold the old address


def test_allocation_leaves_capture_mode_and_context_as_they_were(driver: Listener) -> None:
    workspace.workspace(0, 5, True, 1000)
    names = [name for name, _ in driver.calls]
    assert names[0] == "cuCtxPushCurrent" and names[-1] == "cuCtxPopCurrent"
    modes = [arguments[0] for name, arguments in driver.calls if name == "cuThreadExchangeStreamCaptureMode"]
    assert modes == [2, 7]  # relaxed, then what the driver said it was


@pytest.mark.parametrize(
    ("config", "rows", "boxes"),
    [(DENSE, M, (256, 128)), (GROUPED, 3 * 256, (128, 64))],  # and half a tile; two CTAs share a tile
    ids=str,
)
def test_tensor_maps_span_the_rows_that_a_kernel_is_given(
    driver: Listener, monkeypatch: pytest.MonkeyPatch, config: KernelConfig, rows: int, boxes: tuple[int, ...]
) -> None:
    asked: list[tuple[tensor_map.Matrix, int]] = []

    def encode(matrix: tensor_map.Matrix, box_rows: int) -> tensor_map.TensorMaps:
        asked.append((matrix, box_rows))
        return tensor_map.TensorMaps()

    monkeypatch.setattr(gemms, "tensor_maps", encode)
    start(kernel(config=config), tiles_m=3)
    matrix = tensor_map.Matrix("bf16", A, rows=rows, features=K, stride=K)
    assert asked == [(matrix, box) for box in boxes]


@pytest.mark.parametrize(("rows", "rest"), [(300, 44), (512, 256), (7, 7)])
def test_the_second_of_two_tensor_maps_has_boxes_of_the_rows_that_the_first_leaves_over(
    monkeypatch: pytest.MonkeyPatch, rows: int, rest: int
) -> None:
    """Both describe the same matrix, one behind the other."""
    asked: list[tuple[Any, ...]] = []

    def encode(*arguments: Any) -> int:
        address, _, _, base, extents, strides, box, *_ = arguments
        asked.append((address.value, base.value, list(extents), list(strides), list(box)))
        return 0

    monkeypatch.setattr(tensor_map, "_encoder", lambda: encode)
    made = tensor_map.tensor_maps(tensor_map.Matrix("bf16", A, rows=rows, features=K, stride=K + 8), 256)
    alike = (A, [K, rows], [2 * K + 16])
    assert asked == [(made.address, *alike, [64, 256]), (made.address + 128, *alike, [64, rest])]


def test_tensor_maps_are_made_once_for_each_address(
    driver: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's further arguments are the maps of A, whichever thread or call had the array before."""
    made: dict[tuple[int, int], tensor_map.TensorMaps] = {}
    sent: list[int | None] = []

    def encode(matrix: tensor_map.Matrix, box_rows: int) -> tensor_map.TensorMaps:
        assert (matrix.address, box_rows) not in made
        made[matrix.address, box_rows] = tensor_map.TensorMaps()
        return made[matrix.address, box_rows]

    def listen(description: Any, function: Any, pointers: int, extra: int) -> tuple[int]:
        sent.extend((ctypes.c_void_p * 3).from_address(pointers)[1:])
        return (0,)

    monkeypatch.setattr(gemms, "tensor_maps", encode)
    monkeypatch.setattr(driver, "cuLaunchKernelEx", listen, raising=False)
    prepared = prepare(kernel(config=DENSE))
    for address in (A, A + 256, A):
        prepared.start(5, False, a=address, codes=CODES, scales=SCALES, d=D)
    assert sent == [made[address, rows].address for address in (A, A + 256, A) for rows in (256, 128)]
    assert all(address is not None and address % 64 == 0 for address in sent)


def test_grouping_gets_its_arguments_in_the_order_of_the_struct(driver: Listener) -> None:
    loaded = LoadedKernel("group_rows", "handle", 0, launch.GROUP_THREADS, 0, 132, 8, overlaps=True)
    ids = {"sorted_token_ids": 1, "num_tokens_padded": 2, "rows": M, "top_k": 4}
    launch.launch_group(loaded, 5, a=A, grouped=D, row_bytes=2 * K, stride_bytes=2 * K + 16, **ids)
    ((description, packed),) = driver.launched
    sent = launch.GROUP_LAYOUT.unpack(packed[: launch.GROUP_LAYOUT.size])
    assert sent == (A, D, 1, 2, M, K // 8, K // 8 + 1, 4)
    assert (description.gridDimX, description.blockDimX) == (4 * 132, 256)


def test_a_refusal_names_the_kernel_and_the_reason(driver: Listener) -> None:
    driver.status = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(CudaError, match=r"m16n128k256s4.*132 CTAs.*CUDA_ERROR_INVALID_VALUE \(in words\)"):
        start(kernel())
