"""The documented Machete operators: `machete_mm`, `machete_prepack_B` and `machete_supported_schedules`.

They take what vLLM's operators of these names take and call `gemm` with a kernel of the Machete family.
A schedule's name chooses a kernel and whether tiles are split; without one the dispatch rules in use choose
(`use_rules`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from ..config import STRIP
from ..dispatch.cuda import capability
from ..dtypes import DType
from ..errors import ArchError, InputError, WeightError
from ..formats import pack
from ..formats.blocks import count_groups
from ..formats.elements import rounding
from ..formats.packed import find_format
from .machete_kernels import find_schedule, find_types, find_weight_type, supported_schedules
from .operators import gemm
from .packing import pack_weight
from .tensors import DTYPES, ELEMENTS
from .weight import PackedWeight

_NEEDED = ("a", "b_q_weight")  # of the tensors


class _Shape(NamedTuple):
    """What a weight's tensors must fit, besides each other."""

    weight: DType
    scales: torch.dtype
    n: int
    k: int
    group_size: int


class _Made(NamedTuple):
    """A weight, and the tensors that it was made from.

    Args:
        shape: The weight's.
        sources: Scales and zeros, by identity and version; None where there are none.
        weight: With packed scales and zero points.
    """

    shape: _Shape
    sources: tuple[tuple[WeakIdRef, int] | None, ...]
    weight: PackedWeight


# Prepacked codes -> the weight last made of them: the operator takes scales as checkpoints hold them.
_made: WeakIdKeyDictionary = WeakIdKeyDictionary()


def machete_mm(  # noqa: PLR0917 - the documented signature
    a: torch.Tensor,
    b_q_weight: torch.Tensor,
    b_type: object,
    out_type: torch.dtype | None = None,
    b_group_scales: torch.Tensor | None = None,
    b_group_zeros: torch.Tensor | None = None,
    b_group_size: int | None = None,
    b_channel_scales: torch.Tensor | None = None,
    a_token_scales: torch.Tensor | None = None,
    schedule: str | None = None,
) -> torch.Tensor:
    """Multiply activations by a prepacked weight: W = code * scale + zero.

    The first call with a weight, its scales and zeros packs the latter; do it before a stream is captured.

    Args:
        a: float16 or bfloat16 [m, k]; rows dense, 16-byte aligned. For u4b8 weights also float8_e4m3fn or
            int8, with scales of channels and tokens.
        b_q_weight: What `machete_prepack_B` gave, which does not tell u4 from u4b8, nor u8 from u8b128.
        b_type: Type of the weights: vLLM's scalar type, its name ("uint4b8") or Billhook's ("u4b8").
        out_type: Type of D; a's if None, so that 8-bit activations need one: float16 or bfloat16.
        b_group_scales: D's type [groups, n]; may be None with 8-bit activations.
        b_group_zeros: Minus scale times zero point, in the scales' type and shape; for u4 and u8.
        b_group_size: Weights along k that share one scale; None or -1 for all of them.
        b_channel_scales: float32 [n] or [1, n]; with 8-bit activations.
        a_token_scales: float32 [m], [m, 1] or a single one; with 8-bit activations.
        schedule: One of `machete_supported_schedules`, the like of it with another tile, or None.

    Returns:
        D [m, n].

    Raises:
        UnsupportedError: No kernel has these types (the message lists those that exist), or none is of this
            schedule (it lists the legal ones).
        WeightError: A tensor does not fit or is none, or zeros / -scales is not integral.
        InputError: m is 0, or the stream is being captured and the scales are new.
        ArchError: The GPU has no wgmma.
    """
    _check_tensors(
        a=a,
        b_q_weight=b_q_weight,
        b_group_scales=b_group_scales,
        b_group_zeros=b_group_zeros,
        b_channel_scales=b_channel_scales,
        a_token_scales=a_token_scales,
    )
    native = find_types(
        str(b_type),
        a.dtype,
        None if b_group_scales is None else b_group_scales.dtype,
        None if b_group_zeros is None else b_group_zeros.dtype,
        None if b_channel_scales is None else b_channel_scales.dtype,
        None if a_token_scales is None else a_token_scales.dtype,
        a.dtype if out_type is None else out_type,
    )
    group_size = -1 if b_group_size is None else b_group_size
    config, split_k = (None, True) if schedule is None else find_schedule(schedule, native, group_size)
    if a.dim() != 2 or a.shape[0] < 1:
        raise InputError(f"activations must be [m, k] with m at least 1 (got {tuple(a.shape)})")
    if a.is_cuda and capability(a.get_device()) != (9, 0):
        have = "{}.{}".format(*capability(a.get_device()))
        raise ArchError(f"machete kernels need a GPU of 9.0 (got {have}); billhook.gemm serves others")
    features = b_channel_scales if b_group_scales is None else b_group_scales
    n = features.shape[-1] if features is not None and features.dim() else 0
    shape = _Shape(native.b, DTYPES[native.c], n, a.shape[1], group_size)
    weight = _find_weight(b_q_weight, b_group_scales, b_group_zeros, shape)
    return gemm(
        a,
        weight,
        token_scales=a_token_scales,
        channel_scales=b_channel_scales,
        config=config if a.is_cuda else None,
        split_k=split_k,
    )


def machete_prepack_B(  # noqa: N802 - the documented name
    b_q_weight: torch.Tensor,
    a_type: torch.dtype,
    b_type: object,
    group_scales_type: torch.dtype | None,
) -> torch.Tensor:
    """Pack a weight's codes for `machete_mm`; scales and zeros stay as they are.

    Args:
        b_q_weight: int32 [k bits / 32, n], in either order in memory; a word holds consecutive k, lowest bits
            first. n and k multiples of 16.
        a_type: Type of the activations.
        b_type: As in `machete_mm`.
        group_scales_type: Type of the group scales.

    Returns:
        int32 codes as docs/layout.md has them, on the same device.

    Raises:
        UnsupportedError: No kernel has these types.
        WeightError: A wrong dtype or shape.
    """
    weight = find_weight_type(str(b_type), a_type, group_scales_type)
    _check_tensors(b_q_weight=b_q_weight)
    if b_q_weight.dtype != torch.int32 or b_q_weight.dim() != 2:
        raise WeightError(
            f"b_q_weight must be int32 [k * {weight.bits} / 32, n] "
            f"(got {b_q_weight.dtype} {tuple(b_q_weight.shape)})"
        )
    ones = torch.ones((1, b_q_weight.shape[1]), dtype=torch.float16, device=b_q_weight.device)
    return pack_weight(
        b_q_weight.contiguous(),
        ones,
        -1,
        format=weight.name,
        zeros=ones.to(torch.uint8) if weight.zero_point else None,
        stored="gptq",
    ).codes


def machete_supported_schedules(  # noqa: PLR0917 - the documented signature
    a_type: torch.dtype,
    b_type: object,
    group_scales_type: torch.dtype | None = None,
    group_zeros_type: torch.dtype | None = None,
    channel_scales_type: torch.dtype | None = None,
    token_scales_type: torch.dtype | None = None,
    out_type: torch.dtype | None = None,
) -> list[str]:
    """Return the names of the schedules that `machete_mm` takes for these types; none if no kernel has them.

    They have the documented tiles: first as documented, cooperative under stream-K, then under the persistent
    scheduler, then as pingpong. One may lack a kernel for some group size: `machete_mm` says so.

    Args:
        a_type: Type of the activations.
        b_type: As in `machete_mm`.
        group_scales_type: Type of the group scales, or None; so the next three.
        group_zeros_type: Type of the group zeros.
        channel_scales_type: Type of the channel scales.
        token_scales_type: Type of the token scales.
        out_type: Type of D; a's if None.
    """
    return supported_schedules(
        str(b_type),
        a_type,
        group_scales_type,
        group_zeros_type,
        channel_scales_type,
        token_scales_type,
        a_type if out_type is None else out_type,
    )


def _check_tensors(**given: object) -> None:
    """Check that what is given is a tensor; None stands for what a type has not."""
    for name, one in given.items():
        if not isinstance(one, torch.Tensor) and (one is not None or name in _NEEDED):
            raise WeightError(f"{name} must be a torch.Tensor (got {type(one).__name__})")


def _check_packed(codes: torch.Tensor, shape: _Shape) -> None:
    want = pack.code_shape(shape.n, shape.k, shape.weight.bits)
    if codes.dtype != torch.int32 or tuple(codes.shape) != want:
        raise WeightError(
            f"b_q_weight must be int32 {want} for {shape.weight} weights of k={shape.k}, as a has, and "
            f"n={shape.n}, as scales have (got {codes.dtype} {tuple(codes.shape)}): use machete_prepack_B"
        )


def _find_weight(
    codes: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None, shape: _Shape
) -> PackedWeight:
    """Return codes with packed scales and zero points: as they were made before, if nothing has changed."""
    found: _Made | None = _made.get(codes)
    if (
        found is not None
        and found.weight.codes.data_ptr() == codes.data_ptr()
        and found.shape == shape
        and all(map(_is_same, found.sources, (scales, zeros)))
    ):
        return found.weight
    if codes.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "scales and zeros are packed by the first machete_mm with them, which waits for the GPU: call it "
            "once before the stream is captured"
        )
    _check_packed(codes, shape)
    packed, points = _ones(codes, shape) if scales is None else _pack_groups(scales, zeros, shape)
    weight = PackedWeight(
        codes.detach(),  # another tensor of the same memory: `codes` itself would keep its own entry alive
        packed,
        shape.n,
        shape.k,
        shape.group_size,
        format=shape.weight.name,
        zeros=points,
    )
    if packed.is_cuda:  # kernels request scales before the kernel ahead of them in the stream has ended
        torch.cuda.current_stream(packed.device).synchronize()
    _made[codes] = _Made(shape, (_source(scales), _source(zeros)), weight)
    return weight


def _ones(codes: torch.Tensor, shape: _Shape) -> tuple[torch.Tensor, None]:
    """Return packed scales of one: with 8-bit activations float32 scales of the channels do all."""
    if shape.group_size != -1:
        raise WeightError(f"b_group_size must be None or -1 without b_group_scales (got {shape.group_size})")
    packed = pack.scale_shape(shape.n, shape.k, -1)
    return torch.ones(packed, dtype=shape.scales, device=codes.device), None


def _source(tensor: torch.Tensor | None) -> tuple[WeakIdRef, int] | None:
    """Return what tells whether a tensor is the same and has not changed."""
    return None if tensor is None else (WeakIdRef(tensor), _version(tensor))


def _is_same(source: tuple[WeakIdRef, int] | None, tensor: torch.Tensor | None) -> bool:
    if source is None or tensor is None:
        return source is tensor
    held, version = source
    return held() is tensor and version == _version(tensor)


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written; inference tensors do not tell."""
    return 0 if tensor.is_inference() else tensor._version


def _pack_groups(
    scales: torch.Tensor, zeros: torch.Tensor | None, shape: _Shape
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scales and zero points in the packed order."""
    known = find_format(shape.weight.name).group_sizes
    if shape.group_size not in known:
        raise WeightError(f"b_group_size must be None or one of {known} (got {shape.group_size})")
    want = (count_groups(shape.k, shape.group_size), shape.n)
    for name, one in (("b_group_scales", scales), ("b_group_zeros", zeros)):
        if one is not None and tuple(one.shape) != want:
            raise WeightError(
                f"{name} must be {want} for group_size {shape.group_size} (got {tuple(one.shape)})"
            )
    if not bool(torch.isfinite(scales).all()):
        raise WeightError("b_group_scales must be finite; found NaN or infinity")
    points = None if zeros is None else _zero_points(scales, zeros, shape.weight)
    return _order(scales, shape), None if points is None else _order(points, shape)


def _zero_points(scales: torch.Tensor, zeros: torch.Tensor, weight: DType) -> torch.Tensor:
    """Return -zeros / scales, which must be codes of the weight's type but for the rounding of `zeros`."""
    exact = torch.where(scales == 0, zeros, -zeros.double() / scales.double())
    points = exact.round()
    rounded = (exact - points).abs() <= rounding(ELEMENTS[zeros.dtype]).unit * points.abs()
    wrong = ~(rounded & (points >= 0) & (points < 2**weight.bits))  # NaN is wrong
    if bool(wrong.any()):
        group, column = wrong.nonzero()[0].tolist()
        raise WeightError(
            f"b_group_zeros[{group}, {column}] = {zeros[group, column]:g} is not -scale times a zero point "
            f"0 to {2**weight.bits - 1} (scale {scales[group, column]:g}): kernels take whole zero points"
        )
    return points.to(scales.dtype)


def _order(groups: torch.Tensor, shape: _Shape) -> torch.Tensor:
    """As `formats.pack.pack_scales`, on any device."""
    strips, packed, _ = pack.scale_shape(shape.n, shape.k, shape.group_size)
    padded = groups.new_zeros((packed, strips * STRIP))
    padded[: groups.shape[0], : shape.n] = groups
    rows = torch.from_numpy(pack.pack_scales(np.arange(STRIP)[None], STRIP, -1).reshape(-1))
    return padded.view(packed, strips, STRIP)[:, :, rows.to(groups.device)].transpose(0, 1).contiguous()
