"""Pack, unpack and quantize torch tensors.

Tensors on the CPU are packed by `formats/`, without copies where layouts allow; tensors on a GPU there.
"""

from __future__ import annotations

import torch

from ..formats import host
from ..formats import stored as stored_forms
from ..formats.host import HostWeight, Parts
from ..formats.packed import find_format
from . import pack_on_cuda
from .tensors import ELEMENTS, as_bytes, find_element, from_numpy, to_numpy
from .weight import PackedWeight, from_arrays, to_arrays


def pack_weight(
    codes: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
    *,
    format: str = "u4b8",  # noqa: A002 - as in formats.host
    zeros: torch.Tensor | None = None,
    global_scales: torch.Tensor | None = None,
    stored: str = "codes",
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack quantized weights; the result lies where `codes` does.

    Kernels request weights before the kernel ahead of them in the stream has ended, so
    packing on a GPU waits until the packed weight is there.

    Args:
        codes: uint8 [.., k, n], one code each, or float8_e4m3fn; either order in memory (`.mT` of [n, k] is
            as good). With `stored`, the words of a checkpoint, as `formats.stored` has them.
        scales: [.., groups, n]: float16, bfloat16 or float32, or the codes of e8m0 (mxfp4, mxfp8) or
            e4m3 (nvfp4) scales as uint8 or float8.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        format: A name of `weights.FORMATS`; "u4b8" stands for (code - 8) * scale.
        zeros: Zero points, uint8 [.., groups, n]; for u4 and u8.
        global_scales: float32, one for each expert or one; for nvfp4.
        stored: "codes", or how words hold them: "gptq", "awq" or "compressed_tensors".
        dtype: Activations for which scales and zero points are made; the scales' own if it has 16 bits, else
            bfloat16.

    Raises:
        WeightError: A wrong dtype or shape, a code out of range, n or k not a multiple of 16, or scales that
            are not finite.
    """
    kind = find_format(format)
    if stored != "codes":
        stored_forms.check_form(stored, kind.weight.bits)
    element = ELEMENTS.get(scales.dtype) if dtype is None else find_element(dtype)
    held, factors = as_bytes(codes), as_bytes(scales)
    if codes.is_cuda:
        return pack_on_cuda.pack(
            held,
            factors,
            zeros,
            global_scales,
            group_size=group_size,
            kind=kind,
            stored=stored,
            activations=element,
        )
    words = to_numpy(held)
    parts = Parts(
        format,
        words if stored == "codes" else stored_forms.read_codes(words, stored, kind.weight.bits),
        to_numpy(factors),
        None if zeros is None else to_numpy(zeros),
        None if global_scales is None else to_numpy(global_scales),
        group_size,
    )
    return from_arrays(host.pack(host.join(parts), element))


def pack_quantized(
    weight: HostWeight, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PackedWeight:
    """Pack what `formats` quantized or read, on a device.

    Args:
        weight: Any host value; fp8 scales of blocks and tensors are repeated for the columns that they serve.
        device: Where to pack, and where the result lies.
        dtype: As in `pack_weight`.

    Raises: As `pack_weight`.
    """
    if torch.device(device).type == "cpu":
        return from_arrays(host.pack(weight, None if dtype is None else find_element(dtype)))
    parts = host.split(weight)
    return pack_weight(
        from_numpy(parts.codes).to(device),
        from_numpy(parts.scales).to(device),
        parts.group_size,
        format=parts.format,
        zeros=None if parts.zeros is None else from_numpy(parts.zeros).to(device),
        global_scales=None if parts.global_scales is None else from_numpy(parts.global_scales).to(device),
        dtype=dtype,
    )


def unpack_weight(weight: PackedWeight) -> HostWeight:
    """Return a packed weight's codes, scales and zero points in the order of the GEMM, on the host."""
    return host.unpack(to_arrays(weight))


def quantize_weight(
    weight: torch.Tensor,
    group_size: int | None = None,
    dtype: torch.dtype | None = None,
    *,
    format: str = "u4b8",  # noqa: A002 - as in formats.host
) -> PackedWeight:
    """Quantize, rounding to nearest, and pack; on the host, the result where `weight` is.

    Args:
        weight: Floating point [k, n] or [experts, k, n]: the transpose of `torch.nn.Linear.weight`.
        group_size: Weights along k that share one scale; -1 for one scale per output channel; by default what
            the format usually has: 128, for mxfp4 and mxfp8 32, for nvfp4 16.
        dtype: Activations, float16 or bfloat16, and scales that have their type; the weight's own by default.
        format: A name of `weights.FORMATS`.

    Raises:
        WeightError: A wrong dtype or shape, or weights that are not finite or beyond the scales' range.
    """
    chosen = dtype or (torch.bfloat16 if find_format(format).scale else weight.dtype)
    values = weight.detach().to("cpu", torch.float32).numpy()
    quantized = host.quantize(values, format, group_size, find_element(chosen))
    return pack_quantized(quantized, weight.device, chosen)
