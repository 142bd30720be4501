"""What the driver is asked when a kernel is loaded, for each family; the driver is a stand-in."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from billhook import families
from billhook.config import parse_name
from billhook.dispatch import cuda, loader
from billhook.errors import ArchError

MARLIN = parse_name("marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s3_moe_sm90a")
MACHETE = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m128n256k128s3_dense_sm90a")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Answer for a 9.0 GPU of 132 SMs, two CTAs each; keep the last arguments of every call."""
    calls: dict[str, tuple[Any, ...]] = {}

    def call(name: str, *arguments: Any) -> Any:
        calls[name] = arguments
        return 2 if name.startswith("cuOccupancy") else name

    attributes = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared limit")
    monkeypatch.setattr(cuda, "call", call)
    monkeypatch.setattr(cuda, "driver", lambda: SimpleNamespace(CUfunction_attribute=attributes))
    monkeypatch.setattr(cuda, "setup", lambda device: nullcontext())
    monkeypatch.setattr(cuda, "capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "multiprocessors", lambda device: 132)
    return calls


@pytest.mark.parametrize(("config", "threads"), [(MARLIN, 256), (MACHETE, 384)], ids=str)
def test_a_kernel_gets_the_threads_and_memory_of_its_family(
    asked: dict[str, tuple[Any, ...]], config: Any, threads: int
) -> None:
    gemm = loader.load_gemm(b"machine code", config, 0)
    shared = families.shared_memory(config)
    assert asked["cuModuleGetFunction"] == ("cuModuleLoadData", config.name.encode())
    assert asked["cuFuncSetAttribute"] == ("cuModuleGetFunction", "shared limit", shared)
    assert asked["cuOccupancyMaxActiveBlocksPerMultiprocessor"] == ("cuModuleGetFunction", threads, shared)
    kernel = gemm.kernel
    assert (kernel.threads, kernel.shared_memory, kernel.sms, kernel.ctas_per_sm) == (threads, shared, 132, 2)
    assert kernel.overlaps


def test_code_for_another_gpu_is_refused(
    asked: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "capability", lambda device: (10, 0))
    with pytest.raises(ArchError, match=r"GPU 0 is 10\.0"):
        loader.load_gemm(b"machine code", MACHETE, 0)
    assert not asked
