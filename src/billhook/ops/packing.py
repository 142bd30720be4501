"""Pack, unpack and quantize torch tensors.

Tensors on the CPU are packed by `formats/`, without copies where layouts allow; tensors on a GPU there.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from ..errors import WeightError
from ..formats import host, w4a8
from ..formats import stored as stored_forms
from ..formats.host import HostWeight, Parts
from ..formats.packed import find_format
from ..formats.stored import Words
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
    channel_scales: torch.Tensor | None = None,
    stored: str = "codes",
    input_order: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> PackedWeight:
    """Pack quantized weights; the result lies where `codes` does.

    Kernels request weights before the kernel ahead of them in the stream has ended, so
    packing on a GPU waits until the packed weight is there.

    Args:
        codes: uint8 [.., k, n], one code each, or float8_e4m3fn; either order in memory (`.mT` of [n, k] is
            as good). With `stored`, the words of a checkpoint, as `formats.stored` has them.
        scales: [.., groups, n]: float16, bfloat16 or float32, or the codes of e8m0 (mxfp4, mxfp8) or
            e4m3 (nvfp4, w4a8) scales as uint8 or float8.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        format: A name of `weights.FORMATS`; "u4b8" stands for (code - 8) * scale.
        zeros: Zero points, uint8 [.., groups, n]; for u4 and u8.
        global_scales: float32, one for each expert or one; for nvfp4.
        channel_scales: float32 [.., n]; for w4a8. `fold_scales` makes them of other scales.
        stored: "codes", or how words hold them: "gptq", "awq" or "compressed_tensors".
        input_order: int32 or int64 [k] on any device, each input feature once: row i of the packed weight is
            row `input_order[i]` of `codes` (act-order); None if they are in order. Scales are those of the
            packed rows.
        dtype: Activations for which scales and zero points are made; the scales' own if it has 16 bits, else
            bfloat16.

    Raises:
        WeightError: A wrong dtype or shape, a code out of range, n or k not a multiple of 16, scales that are
            not finite, or an order that is no permutation.
    """
    kind = find_format(format)
    if stored != "codes":
        stored_forms.check_form(stored, kind.weight.bits)
    element = ELEMENTS.get(scales.dtype) if dtype is None else find_element(dtype)
    held, factors = as_bytes(codes), as_bytes(scales)
    order = None if input_order is None else _read_order(input_order, held, kind.weight.bits, stored)
    if codes.is_cuda:
        return pack_on_cuda.pack(
            held,
            factors,
            zeros,
            global_scales,
            channel_scales,
            group_size=group_size,
            kind=kind,
            stored=stored,
            order=order,
            activations=element,
        )
    words = to_numpy(held)
    if stored != "codes":
        words = stored_forms.read_codes(words, stored, kind.weight.bits)
    if order is not None:
        words = words[to_numpy(order)]
    parts = Parts(
        format,
        words,
        to_numpy(factors),
        None if zeros is None else to_numpy(zeros),
        None if global_scales is None else to_numpy(global_scales),
        group_size,
        None if channel_scales is None else to_numpy(channel_scales),
    )
    return from_arrays(host.pack(host.join(parts), element))


def _read_order(order: torch.Tensor, codes: torch.Tensor, bits: int, stored: str) -> torch.Tensor:
    """Return an order of input features where the codes are, as int32."""
    experts, k, _ = pack_on_cuda.read_shape(codes, bits, stored)
    if stored == "awq" or experts:
        raise WeightError("AWQ and experts have no act-order; input_order must be None (got a tensor)")
    if order.dtype not in (torch.int32, torch.int64) or tuple(order.shape) != (k,):
        raise WeightError(
            f"input_order must be int32 or int64 [{k}] (got {order.dtype} {tuple(order.shape)})"
        )
    if not torch.equal(order.sort().values.cpu(), torch.arange(k, dtype=order.dtype)):
        raise WeightError(f"input_order must hold each of 0 to {k - 1} once")
    return order.to(codes.device, torch.int32)


def pack_quantized(
    weight: HostWeight | Parts, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PackedWeight:
    """Pack what `formats` quantized or read, on a device; words of checkpoints are read there.

    Args:
        weight: Any host value, or the parts of one; fp8 scales of blocks and tensors are repeated for the
            columns that they serve.
        device: Where to pack, and where the result lies.
        dtype: As in `pack_weight`.

    Raises: As `pack_weight`.
    """
    if torch.device(device).type == "cpu":
        return from_arrays(host.pack(weight, None if dtype is None else find_element(dtype)))
    return pack_weight(**send(weight, torch.device(device)), dtype=dtype)


def send(weight: HostWeight | Parts, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `pack_weight` for a host value, on a device; codes and scales as they lie."""
    parts = weight if isinstance(weight, Parts) else host.split(weight)
    if isinstance(parts.codes, Words):
        codes, stored, order = parts.codes.values, parts.codes.form, parts.codes.order
    else:
        codes, stored, order = parts.codes, "codes", None

    def move(array: npt.NDArray[Any] | None) -> torch.Tensor | None:
        if array is None:
            return None
        if array.ndim > 1 and not array.flags.c_contiguous and array.swapaxes(-1, -2).flags.c_contiguous:
            return from_numpy(array.swapaxes(-1, -2)).to(device).mT  # rather than turned round on the host
        return from_numpy(array).to(device)

    return {
        "codes": move(codes),
        "scales": move(parts.scales),
        "group_size": parts.group_size,
        "format": parts.format,
        "zeros": move(parts.zeros),
        "global_scales": move(parts.global_scales),
        "channel_scales": move(parts.channel_scales),
        "stored": stored,
        "input_order": move(order),
    }


def unpack_weight(weight: PackedWeight) -> HostWeight:
    """Return a packed weight's codes, scales and zero points in the order of the GEMM, on the host."""
    return host.unpack(to_arrays(weight))


def fold_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scales of a u4b8 weight as those of a w4a8 one, for `pack_weight` beside the same codes.

    A weight is then its code times an e4m3 scale, rounded to e4m3, times a float32 scale of its channel:
    less exact than u4b8, and what tensor cores multiply by e4m3 activations without a stop at each group.

    Args:
        scales: float16, bfloat16 or float32 [.., groups, n], finite.

    Returns:
        float8_e4m3fn [.., groups, n] and float32 [.., n], where `scales` lie.

    Raises:
        WeightError: A scale is not finite.
    """
    folded, channels = w4a8.fold(to_numpy(scales))
    codes = from_numpy(folded).to(scales.device).view(torch.float8_e4m3fn)
    return codes, from_numpy(channels).to(scales.device)


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
