"""Torch tensors as numpy arrays and back, without copies where the memory allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dtypes import BF16, E4M3FN, F16, S8, DType
from ..errors import WeightError
from ..formats.elements import numpy_dtype

ELEMENTS = {torch.float16: F16, torch.bfloat16: BF16}
DTYPES = {element: dtype for dtype, element in ELEMENTS.items()}
NARROW_DTYPES = {E4M3FN: torch.float8_e4m3fn, S8: torch.int8}


def find_element(dtype: torch.dtype) -> DType:
    """Return the element type of activations.

    Raises:
        WeightError: Neither float16 nor bfloat16.
    """
    try:
        return ELEMENTS[dtype]
    except KeyError:
        raise WeightError(
            f"activations are float16 or bfloat16 (got {dtype}); name one with dtype=torch.bfloat16"
        ) from None


def round_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Return float32 numbers as float8_e4m3fn, rounded to nearest even and saturated."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return values.clamp(-largest, largest).to(torch.float8_e4m3fn)


def to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a numpy array; a CPU tensor's memory is shared, bfloat16 included.

    Types of 8 bits that numpy lacks come as uint8.
    """
    host = tensor.detach().cpu()
    if host.dtype == torch.bfloat16:
        shared: npt.NDArray[Any] = host.view(torch.int16).numpy().view(numpy_dtype(BF16))
        return shared
    array: npt.NDArray[Any] = as_bytes(host).numpy()
    return array


def from_numpy(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a numpy array as a CPU tensor; a contiguous array's memory is shared, bfloat16 included."""
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype == numpy_dtype(BF16):
        return torch.from_numpy(contiguous.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(contiguous.view(np.int32) if contiguous.dtype == np.uint32 else contiguous)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of float8 numbers as its codes, uint8, with the same memory; any other as it is."""
    return tensor.view(torch.uint8) if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def stands_alone(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tell whether torch's dispatcher would do nothing for a call but find the function of the device.

    That is so without gradients, tracing, modes and subclasses. It costs ten times as much as to ask.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and type(a) is torch.Tensor
        and type(b) is torch.Tensor
    )


def current_device() -> int:
    """As torch.cuda.current_device(), where there is a CUDA tensor: without asking whether CUDA is in use."""
    return int(torch._C._cuda_getDevice())


def current_stream(device: int) -> int:
    """As torch.cuda.current_stream(device).cuda_stream, without a microsecond for making a Stream."""
    return int(torch._C._cuda_getCurrentRawStream(device))
