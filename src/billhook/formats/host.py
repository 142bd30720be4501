"""Weights of every format before they are packed: quantize, dequantize, pack and unpack, whichever it is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dtypes import BF16, E2M1F, DType
from ..errors import WeightError
from . import affine, fp8, mx, nvfp4, w4a8
from . import pack as order
from .affine import Affine
from .blocks import Block
from .elements import find_element, numpy_dtype
from .fp8 import Fp8
from .mx import Mx
from .nvfp4 import Nvfp4
from .packed import PackedArrays, find_format, tensor_shapes
from .stored import Words
from .w4a8 import W4a8

HostWeight: TypeAlias = Affine | Fp8 | Mx | Nvfp4 | W4a8


class Parts(NamedTuple):
    """What a host value holds, in the terms of packed weights; arrays in the order of the GEMM.

    Args:
        format: Name of the packed format.
        codes: uint8 [.., k, n], or the words of a checkpoint that hold them.
        scales: [.., groups, n]; float32 or the activations' type, or uint8 codes of e8m0 or e4m3.
        zeros: uint8 [.., groups, n], or None.
        global_scales: float32 [experts or 1], or None.
        group_size: Weights along k that share one scale; -1 for channel scales.
        channel_scales: float32 [.., n] of folded weights, or None.
    """

    format: str
    codes: npt.NDArray[np.uint8] | Words
    scales: npt.NDArray[Any]
    zeros: npt.NDArray[np.uint8] | None
    global_scales: npt.NDArray[np.float32] | None
    group_size: int
    channel_scales: npt.NDArray[np.float32] | None = None


def quantize(
    weight: npt.ArrayLike,
    format: str,  # noqa: A002 - the word that checkpoints and users have for it
    group_size: int | None = None,
    activations: DType = BF16,
) -> HostWeight:
    """Quantize weights, rounding to nearest; the format's own module says how scales are found.

    Args:
        weight: Finite numbers [.., k, n].
        format: A name of `weights.FORMATS`.
        group_size: Weights along k that share one scale, -1 for channel scales; the format's usual if None.
        activations: f16 or bf16: the type of scales that have the activations' type.

    Raises:
        WeightError: No such format or group size, a weight that is not finite or beyond the scales' range, or
            k not in whole groups of a format that needs them.
    """
    held = find_format(format)
    size = held.group_sizes[0] if group_size is None else group_size
    if size not in held.group_sizes:
        raise WeightError(f"{format} weights have group_size {held.group_sizes} (got {group_size})")
    if held.folded:
        return w4a8.quantize(weight, size)
    if held.weight in affine.ELEMENTS:
        return affine.quantize(weight, held.weight, size, activations)
    if held.global_scale:
        return nvfp4.quantize(weight)
    return mx.quantize(weight, held.weight) if held.scale else fp8.quantize(weight, Block(size))


def dequantize(weight: HostWeight, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Return the weights [.., k, n]; exact in float64, rounded once to any other type.

    Args:
        weight: Any host value.
        dtype: numpy type of the result.
    """
    if isinstance(weight, Affine):
        return affine.dequantize(weight, dtype)
    if isinstance(weight, Fp8):
        return fp8.dequantize(weight, dtype)
    if isinstance(weight, W4a8):
        return w4a8.dequantize(weight, dtype)
    return mx.dequantize(weight, dtype) if isinstance(weight, Mx) else nvfp4.dequantize(weight, dtype)


def split(weight: HostWeight) -> Parts:
    """Return the parts of a host value that packing reorders.

    fp8 scales of tensors and of blocks are repeated for each column that they serve, which is exact.

    Raises:
        WeightError: fp8 scales of blocks other than all or 128 along k.
    """
    if isinstance(weight, Affine):
        return Parts(weight.element.name, weight.codes, weight.scales, weight.zeros, None, weight.group_size)
    if isinstance(weight, Mx):
        name = "mxfp4" if weight.element == E2M1F else "mxfp8"
        return Parts(name, weight.codes, weight.scales, None, None, mx.GROUP_SIZE)
    if isinstance(weight, Nvfp4):
        whole = weight.global_scale.reshape(-1)
        return Parts("nvfp4", weight.codes, weight.scales, None, whole, nvfp4.GROUP_SIZE)
    if isinstance(weight, W4a8):
        size, channels = weight.group_size, weight.channel_scales
        return Parts("w4a8", weight.codes, weight.scales, None, None, size, channels)
    block, n = weight.block, weight.codes.shape[-1]
    if block.k not in find_format("fp8").group_sizes:
        raise WeightError(f"fp8 weights are packed with scales for all or 128 of k (got blocks of {block})")
    columns = n if block.n == -1 else block.n
    return Parts(
        "fp8", weight.codes, np.repeat(weight.scales, columns, axis=-1)[..., :n], None, None, block.k
    )


def join(parts: Parts) -> HostWeight:
    """Return the host value of given parts, checked by its own rules; `split` takes it apart again.

    Codes that are words are read.

    Raises:
        WeightError: No such format, zero points or scales that it lacks or has too many, or what the value
            refuses: dtypes, shapes, codes out of range, scales that are not finite.
    """
    held = find_format(parts.format)
    for name, extra, wanted in (
        ("zeros", parts.zeros, held.weight.zero_point),
        ("global_scales", parts.global_scales, held.global_scale),
        ("channel_scales", parts.channel_scales, held.folded),
    ):
        if (extra is None) == wanted:
            raise WeightError(f"{held.name} weights {'need' if wanted else 'have no'} {name}")
    codes = parts.codes.read() if isinstance(parts.codes, Words) else parts.codes
    if parts.channel_scales is not None:
        return W4a8(codes, parts.scales, parts.channel_scales, parts.group_size)
    if held.weight in affine.ELEMENTS:
        return Affine(held.weight, codes, parts.scales, parts.zeros, parts.group_size)
    if parts.global_scales is not None:
        experts = codes.shape[:-2]
        if parts.global_scales.size != math.prod(experts):
            raise WeightError(
                f"global_scales must be one for each weight, {math.prod(experts)} "
                f"(got {parts.global_scales.size})"
            )
        return Nvfp4(codes, parts.scales, parts.global_scales.reshape(experts))
    if held.scale:
        return Mx(held.weight, codes, parts.scales)
    return Fp8(codes, parts.scales.astype(np.float32), Block(parts.group_size))


def fold(weight: HostWeight | Parts) -> Parts:
    """Return a weight of symmetric 4-bit codes as one of w4a8: its scales change, its codes do not.

    Args:
        weight: A u4b8 weight.

    Raises:
        WeightError: It is of another format or group size, or a scale is not finite.
    """
    parts, folded = weight if isinstance(weight, Parts) else split(weight), find_format("w4a8")
    if parts.format != "u4b8" or parts.group_size not in folded.group_sizes:
        raise WeightError(
            f"scales are folded of u4b8 weights (4 bits, symmetric), group_size "
            f"{' or '.join(map(str, folded.group_sizes))} (got {parts.format}, group_size "
            f"{parts.group_size}); leave these as they are"
        )
    scales, channels = w4a8.fold(parts.scales)
    return parts._replace(format=folded.name, scales=scales, channel_scales=channels)


def scale_type(parts: Parts, activations: DType | None) -> DType:
    """Return the type of activations to pack for: as asked, else that of 16-bit scales, else bf16.

    Raises:
        WeightError: The format is not multiplied by such activations, or has other scales.
    """
    allowed = find_format(parts.format).outputs
    own = find_element(parts.scales.dtype)
    if own is None and not find_format(parts.format).scale:
        raise WeightError(f"scales must be float16, bfloat16 or float32 (got {parts.scales.dtype})")
    if activations is None:
        return own if own in allowed else BF16
    if activations not in allowed:
        names = " or ".join(map(str, allowed))
        raise WeightError(f"{parts.format} weights are multiplied by {names} (got {activations})")
    return activations


def pack(weight: HostWeight | Parts, activations: DType | None = None) -> PackedArrays:
    """Pack a weight.

    Args:
        weight: Any host value, or the parts of one; a leading axis of experts makes it one of a
            Mixture-of-Experts layer.
        activations: f16 or bf16: the type of scales and zero points that have the activations' type, to which
            scales of another type are rounded; by default the scales' own if it has 16 bits, else bf16.

    Raises:
        WeightError: n or k not a multiple of 16, a group size that kernels do not read, scales beyond the
            range of `activations`, or activations that the format is not multiplied by.
    """
    value = join(weight) if isinstance(weight, Parts) else weight
    parts = split(value)
    held, kind = find_format(parts.format), numpy_dtype(scale_type(parts, activations))
    *experts, k, n = value.codes.shape
    tensor_shapes(held, n, k, parts.group_size, len(experts))  # refuses what is not packed
    scales = parts.scales if held.scale else round_scales(parts.scales, kind)
    zeros = None if parts.zeros is None else parts.zeros.astype(kind)
    codes = order.order_folded(value.codes) if held.folded else value.codes
    return PackedArrays(
        format=held.name,
        codes=order.pack_codes(codes, held.weight),
        scales=order.pack_scales(scales, k, parts.group_size),
        n=n,
        k=k,
        group_size=parts.group_size,
        num_experts=experts[0] if experts else 0,
        zeros=None if zeros is None else order.pack_scales(zeros, k, parts.group_size),
        global_scales=parts.global_scales,
        channel_scales=parts.channel_scales,
    )


def unpack(packed: PackedArrays) -> HostWeight:
    """Return the codes, scales and zero points of a packed weight in the order of the GEMM.

    fp8 scales come back for each column, in float32.
    """
    n, k, size = packed.n, packed.k, packed.group_size
    codes = order.unpack_codes(packed.codes, k, n, packed.held.weight)
    return join(
        Parts(
            packed.format,
            order.reorder_folded(codes) if packed.held.folded else codes,
            order.unpack_scales(packed.scales, k, n, size),
            None if packed.zeros is None else order.unpack_scales(packed.zeros, k, n, size).astype(np.uint8),
            packed.global_scales,
            size,
            packed.channel_scales,
        )
    )


def round_scales(scales: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return scales rounded to the activations' type.

    Raises:
        WeightError: A scale is beyond the type's range.
    """
    with np.errstate(over="ignore"):
        rounded: npt.NDArray[Any] = scales.astype(dtype, copy=False)
    if not np.isfinite(rounded.astype(np.float32, copy=False)).all():
        raise WeightError(f"scales must be finite in {dtype}; found NaN, infinity or one beyond its range")
    return rounded
