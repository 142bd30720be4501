"""What the driver module makes of the CUDA driver's answers, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from billhook import driver
from billhook.arch import Arch
from billhook.errors import ArchError

H100 = (b"NVIDIA H100 80GB HBM3\0\0\0", 85_520_809_984, 9, 0, 132)
L4 = (b"NVIDIA L4", 23_000_000_000, 8, 9, 58)
FUTURE = (b"NVIDIA X", 1, 42, 0, 1)


def fake(*gpus: tuple[bytes, int, int, int, int], refused: int = -1) -> SimpleNamespace:
    """Return a stand-in for cuda-bindings' driver module that shows these GPUs and refuses one of them."""
    names = ("MAJOR", "MINOR", "SMS")

    def answer(index: int, value: object) -> tuple[int, object]:
        return (999, None) if index == refused else (0, value)

    return SimpleNamespace(
        cuDeviceGetCount=lambda: (0, len(gpus)),
        cuDeviceGet=lambda index: (0, index),
        cuDeviceGetName=lambda length, index: answer(index, gpus[index][0]),
        cuDeviceTotalMem=lambda index: answer(index, gpus[index][1]),
        cuDeviceGetAttribute=lambda name, index: answer(index, gpus[index][2 + names.index(name)]),
        cuDriverGetVersion=lambda: (0, 13000),
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="MAJOR",
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="MINOR",
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="SMS",
        ),
    )


def test_gpus_in_the_drivers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_driver", lambda: fake(L4, H100, L4))
    first, second, third = driver.gpus()
    assert second == driver.Gpu("NVIDIA H100 80GB HBM3", Arch(9, 0, "a"), 132, 85_520_809_984)
    assert first == third == driver.Gpu("NVIDIA L4", Arch(8, 9), 58, 23_000_000_000)
    assert driver.native_archs() == [Arch(8, 9), Arch(9, 0, "a")]
    assert driver.version() == "13.0"


def test_gpus_that_are_unknown_or_refused_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_driver", lambda: fake(H100, FUTURE, L4, refused=2))
    assert [gpu.sms for gpu in driver.gpus()] == [132]


def test_without_a_driver_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_driver", lambda: None)
    assert driver.gpus() == driver.native_archs() == []
    assert driver.version() is None


def test_native_arch() -> None:
    assert driver.native_arch((9, 0)) == Arch(9, 0, "a")
    assert driver.native_arch((12, 0)) == Arch(12, 0)
    with pytest.raises(ArchError):
        driver.native_arch((42, 0))
