"""Pack tensors that lie on a GPU, there."""

from __future__ import annotations

import math
from itertools import product
from typing import NoReturn

import torch

from ..dispatch import packing
from ..dispatch.provider import kernels
from ..dtypes import E4M3FN, E8M0FNU, DType
from ..errors import WeightError
from ..formats.blocks import count_groups
from ..formats.packed import tensor_shapes
from ..weights import PackedFormat
from .tensors import DTYPES, ELEMENTS, current_stream
from .weight import PackedWeight

_ALIGNMENT = 16  # bytes that a kernel loads at a time
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST_SCALE = {E8M0FNU: 0xFE, E4M3FN: 0x7E}  # above are NaN, and negative numbers
_SIGNLESS = 0x7F  # of e4m3


def pack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    global_scales: torch.Tensor | None,
    channel_scales: torch.Tensor | None,
    *,
    group_size: int,
    kind: PackedFormat,
    stored: str,
    order: torch.Tensor | None,
    activations: DType | None,
) -> PackedWeight:
    """Pack a weight; the arguments are those of `packing.pack_weight`, float8 tensors as uint8, order int32.

    Raises:
        WeightError: As `packing.pack_weight`.
    """
    device = codes.device
    experts, k, n = read_shape(codes, kind.weight.bits, stored)
    shapes = tensor_shapes(kind, n, k, group_size, experts[0] if experts else 0)
    groups = (*experts, count_groups(k, group_size), n)
    dtype = _check_scales(kind, scales, groups, activations)
    _check_zeros(kind, zeros, groups)
    _check_global_scales(kind, global_scales, math.prod(experts))
    _check_channel_scales(kind, channel_scales, (*experts, n))
    with torch.cuda.device(device):
        size = (math.prod(experts), k, n)
        words, refused = pack_codes(codes, kind, stored, size, shapes["codes"], order=order)
        factors = pack_groups(scales.to(device, dtype), shapes["scales"])
        offsets = None if zeros is None else pack_groups(zeros.to(device, dtype), shapes["scales"])
        words = order_folded(words) if kind.folded else words
        if refused.item():  # waits until everything is packed
            _refuse_codes(codes, kind)
    return PackedWeight(
        words,
        factors,
        n,
        k,
        group_size,
        experts[0] if experts else 0,
        kind.name,
        offsets,
        None if global_scales is None else global_scales.reshape(-1).to(device).contiguous(),
        None if channel_scales is None else channel_scales.to(device).contiguous(),
    )


def read_shape(codes: torch.Tensor, bits: int, stored: str) -> tuple[tuple[int, ...], int, int]:
    """Return the experts, k and n of a weight from the codes as they are stored."""
    byte_codes = stored == "codes" or (stored == "compressed_tensors" and codes.dtype == torch.uint8)
    wanted = torch.uint8 if byte_codes else torch.int32
    if codes.dtype != wanted or codes.dim() not in (2, 3) or codes.numel() == 0:
        raise WeightError(
            f"{stored} of {bits} bits must be {wanted} [.., k, n], no axis empty "
            f"(got {codes.dtype} {tuple(codes.shape)})"
        )
    *experts, rows, columns = codes.shape
    each = 8 * codes.itemsize // bits
    if stored == "codes":
        return tuple(experts), rows, columns
    if stored == "gptq":
        return tuple(experts), rows * each, columns
    if stored == "awq":
        return tuple(experts), rows, columns * each
    return tuple(experts), columns * each, rows


def _check_scales(
    held: PackedFormat, scales: torch.Tensor, want: tuple[int, ...], activations: DType | None
) -> torch.dtype:
    """Refuse scales that do not fit; return the type in which they are packed."""
    allowed = (torch.uint8,) if held.scale else _FLOATS
    if scales.dtype not in allowed or tuple(scales.shape) != want:
        names = " or ".join(map(str, allowed))
        raise WeightError(f"scales must be {names} {want} (got {scales.dtype} {tuple(scales.shape)})")
    if activations is not None and activations not in held.outputs:
        names = " or ".join(map(str, held.outputs))
        raise WeightError(f"{held.name} weights are multiplied by {names} (got {activations})")
    if held.scale:
        signless = scales & _SIGNLESS if held.folded else scales
        if bool((signless > _LARGEST_SCALE[held.scale]).any()):
            also = "" if held.folded else " or negative"
            raise WeightError(f"{held.scale} scales must not be NaN{also}")
        return torch.uint8
    kind = scales.dtype if scales.dtype in ELEMENTS else torch.bfloat16
    kind = kind if activations is None else DTYPES[activations]
    if not bool(torch.isfinite(scales.to(kind)).all()):
        raise WeightError(f"scales must be finite in {kind}; found NaN, infinity or one beyond its range")
    if held.weight == E4M3FN and bool((scales < 0).any()):
        raise WeightError("scales of fp8 weights must not be negative")
    return kind


def _check_zeros(held: PackedFormat, zeros: torch.Tensor | None, want: tuple[int, ...]) -> None:
    if (zeros is not None) != held.weight.zero_point:
        raise WeightError(f"{held.name} weights {'need' if held.weight.zero_point else 'have no'} zeros")
    if zeros is None:
        return
    if zeros.dtype != torch.uint8 or tuple(zeros.shape) != want:
        raise WeightError(f"zeros must be uint8 {want} (got {zeros.dtype} {tuple(zeros.shape)})")
    largest = 2**held.weight.bits - 1
    if int(zeros.max()) > largest:
        raise WeightError(f"zeros must be 0 to {largest} (got {int(zeros.max())})")


def _check_global_scales(held: PackedFormat, scales: torch.Tensor | None, count: int) -> None:
    if (scales is not None) != held.global_scale:
        raise WeightError(f"{held.name} weights {'need' if held.global_scale else 'have no'} global_scales")
    if scales is None:
        return
    if scales.dtype != torch.float32 or scales.numel() != count:
        raise WeightError(
            f"global_scales must be {count} of float32 (got {scales.numel()} of {scales.dtype})"
        )
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        raise WeightError(f"global_scales must be finite and positive (got {scales.tolist()})")


def _check_channel_scales(held: PackedFormat, scales: torch.Tensor | None, want: tuple[int, ...]) -> None:
    if (scales is not None) != held.folded:
        raise WeightError(f"{held.name} weights {'need' if held.folded else 'have no'} channel_scales")
    if scales is None:
        return
    if scales.dtype != torch.float32 or tuple(scales.shape) != want:
        raise WeightError(f"channel_scales must be float32 {want} (got {scales.dtype} {tuple(scales.shape)})")
    if not bool(torch.isfinite(scales).all()):
        raise WeightError("channel_scales must be finite; found NaN or infinity")


def pack_codes(
    codes: torch.Tensor,
    kind: PackedFormat,
    stored: str,
    size: tuple[int, int, int],
    shape: tuple[int, ...],
    *,
    order: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed codes, and a number that becomes 1 on the GPU if a code is out of range.

    Args:
        codes: As they are stored.
        kind: Their format.
        stored: How words hold them.
        size: Experts, at least 1; k; n.
        shape: That of the packed codes.
        order: int32 [k], the stored input feature that each packed one is; None if they are in order.
    """
    experts, k, n = size
    bits, device = kind.weight.bits, codes.device.index
    if stored == "codes":
        codes, order = (codes if order is None else codes.index_select(0, order)), None
        by_column = not codes.is_contiguous() and codes.mT.is_contiguous()
        source, codes = ("bytes_nk", codes.mT) if by_column else ("bytes_kn", codes)
    elif stored == "compressed_tensors":
        source = "nibbles_nk" if bits == 4 else "bytes_nk"
    else:
        source = stored
    source += "" if order is None else "_ordered"
    codes = codes.contiguous()
    if codes.data_ptr() % _ALIGNMENT:
        codes = codes.clone()
    words = codes.new_empty(shape, dtype=torch.int32)
    refused = codes.new_zeros(1, dtype=torch.int32)
    packing.launch_pack_codes(
        kernels().pack(f"pack_{source}_{bits}", device),
        current_stream(device),
        source=codes.data_ptr(),
        packed=words.data_ptr(),
        refused=refused.data_ptr(),
        order=0 if order is None else order.data_ptr(),
        experts=experts,
        n=n,
        k=k,
        zero=kind.weight.bias,
        refuse_nan=kind.weight == E4M3FN,
    )
    return words, refused


def order_folded(words: torch.Tensor) -> torch.Tensor:
    """Return packed codes of 4 bits in the order of folded weights, as `formats.pack.order_folded` has it.

    Args:
        words: int32 [.., 32, 4], the words of lanes 4 g + t.
    """
    lanes = words.unflatten(-2, (8, 4))
    ordered = torch.zeros_like(lanes)
    for t, b in product(
        range(4), range(2)
    ):  # nibble 4 h + 2 b + d is nibble 4 d + 2 q + h of lane 4 g + from
        q, source = divmod(2 * t + b, 4)
        four = lanes[..., source, :] >> 8 * q
        same, up, down = four & 0x00F0000F, four & 0x000000F0, four & 0x000F0000
        ordered[..., t, :] |= (same | up << 12 | down >> 12) << 8 * b
    return ordered.flatten(-3, -2)


def _refuse_codes(codes: torch.Tensor, kind: PackedFormat) -> NoReturn:
    if kind.weight == E4M3FN:
        raise WeightError("codes must not be NaN (0x7f or 0xff of e4m3fn)")
    raise WeightError(f"codes must be 0 to {2**kind.weight.bits - 1} (got {int(codes.max())})")


def pack_groups(scales: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Pack scales or zero points [.., groups, n], however they lie in memory."""
    packed = scales.new_empty(shape)
    device, every = scales.device.index, scales if scales.dim() == 3 else scales[None]
    experts, groups, n = every.shape
    packing.launch_pack_scales(
        kernels().pack(f"pack_scales_{8 * scales.itemsize}", device),
        current_stream(device),
        source=every.data_ptr(),
        packed=packed.data_ptr(),
        experts=experts,
        strides=every.stride(),
        n=n,
        groups=groups,
        packed_groups=shape[-2],
    )
    return packed
