"""The few calls of the CUDA driver API that loading and launching need.

Source: CUDA Driver API (CUDA 13.0), "Module Management", "Execution Control", "Stream Management".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..errors import CudaError, ToolchainError

_thread = threading.local()


@cache
def driver() -> Any:
    """Return cuda-bindings' driver module, initialised.

    Raises:
        ToolchainError: cuda-bindings or the NVIDIA driver is missing.
    """
    try:
        from cuda.bindings import driver as module
    except ImportError as error:
        raise ToolchainError("launching kernels needs cuda-bindings: pip install 'billhook[cuda]'") from error
    try:
        status = module.cuInit(0)[0]
    except RuntimeError as error:  # libcuda.so is not there
        raise ToolchainError(f"launching kernels needs the NVIDIA driver: {error}") from error
    if status != 0:
        raise ToolchainError(f"launching kernels needs a working NVIDIA driver (cuInit: {status.name})")
    return module


def call(function: str, *args: Any) -> Any:
    """Call the driver function and return its result, or a tuple of its results.

    Raises:
        CudaError: The driver refused; the message holds the call and the driver's words.
    """
    module = driver()
    status, *results = getattr(module, function)(*args)
    if status != 0:
        raise refusal(function, status)
    return results[0] if len(results) == 1 else tuple(results)


def refusal(function: str, status: Any) -> CudaError:
    """Return the error for a call that the driver refused."""
    _, text = driver().cuGetErrorString(status)
    words = text.decode() if text else "no description"
    return CudaError(f"{function} failed: {status.name} ({words})")


@cache
def primary_context(device: int) -> Any:
    """Return the context that this process's CUDA runtime and torch share on a GPU; it is kept for good."""
    return call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", device))


@cache
def capability(device: int) -> tuple[int, int]:
    """Return a GPU's compute capability."""
    name = driver().CUdevice_attribute
    handle = call("cuDeviceGet", device)
    return (
        call("cuDeviceGetAttribute", name.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
        call("cuDeviceGetAttribute", name.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
    )


@cache
def multiprocessors(device: int) -> int:
    """Return a GPU's number of SMs."""
    name = driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    return int(call("cuDeviceGetAttribute", name, call("cuDeviceGet", device)))


def bind_thread(device: int) -> None:
    """Give a thread that has no context yet the primary one; later, whoever switches GPUs keeps it right."""
    if getattr(_thread, "bound", False):
        return
    if int(call("cuCtxGetCurrent")) == 0:
        call("cuCtxSetCurrent", primary_context(device))
    _thread.bound = True


@contextmanager
def setup(device: int) -> Iterator[None]:
    """Make `device` current, and allow loading and allocating even while some stream is being captured."""
    relaxed = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    call("cuCtxPushCurrent", primary_context(device))
    try:
        before = call("cuThreadExchangeStreamCaptureMode", relaxed)
        try:
            yield
        finally:
            call("cuThreadExchangeStreamCaptureMode", before)
    finally:
        call("cuCtxPopCurrent")
