"""What the CUDA driver says about this machine's GPUs; nothing without driver or cuda-bindings.

Source: CUDA Driver API (CUDA 13.0), "Initialization", "Version Management", "Device Management".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .arch import Arch, parse
from .errors import ArchError


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine.

    Args:
        name: As the driver calls it, such as `NVIDIA H100 80GB HBM3`.
        arch: The target whose machine code uses all of it.
        sms: Streaming multiprocessors.
        memory: Bytes.
    """

    name: str
    arch: Arch
    sms: int
    memory: int


def gpus() -> list[Gpu]:
    """Return the GPUs that the driver shows and Billhook knows, in its order; none without a driver."""
    driver = _driver()
    if driver is None:
        return []
    status, count = driver.cuDeviceGetCount()
    found = [_gpu(driver, index) for index in range(count)] if status == 0 else []
    return [gpu for gpu in found if gpu is not None]


def native_archs() -> list[Arch]:
    """Return the targets of this machine's GPUs, each once; none without a GPU."""
    return list(dict.fromkeys(gpu.arch for gpu in gpus()))


def native_arch(capability: tuple[int, int]) -> Arch:
    """Return the target that uses all of a GPU: `9.0a` for 9.0 (wgmma needs it), else the portable one.

    Raises:
        ArchError: Billhook does not know this compute capability.
    """
    arch = parse(f"{capability[0]}.{capability[1]}")
    return replace(arch, suffix="a") if capability == (9, 0) else arch


def version() -> str | None:
    """Return the newest CUDA version that the driver supports, such as `13.0`; None without a driver."""
    driver = _driver()
    if driver is None:
        return None
    status, number = driver.cuDriverGetVersion()
    return f"{number // 1000}.{number % 1000 // 10}" if status == 0 else None


def _driver() -> Any | None:
    """Return cuda-bindings' driver module, initialised; None if it or the driver is missing or refuses."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError:  # libcuda.so is not there
        return None
    return driver if status == 0 else None


def _gpu(driver: Any, index: int) -> Gpu | None:
    """Return one GPU; None if the driver refuses or Billhook does not know the GPU."""
    attribute = driver.CUdevice_attribute
    status, device = driver.cuDeviceGet(index)
    answers = [driver.cuDeviceGetName(256, device), driver.cuDeviceTotalMem(device)] + [
        driver.cuDeviceGetAttribute(name, device)
        for name in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    ]
    if status != 0 or any(answer[0] != 0 for answer in answers):
        return None
    name, memory, major, minor, sms = (answer[1] for answer in answers)
    try:
        arch = native_arch((major, minor))
    except ArchError:
        return None
    return Gpu(name.split(b"\0")[0].decode(), arch, sms, memory)
