"""The documented Machete operators: `machete_mm`, `machete_prepack_B` and `machete_supported_schedules`.

They take what vLLM's operators of these names take and call `gemm` with a kernel of the Machete family.
A schedule's name chooses a kernel and whether tiles are split; without one the dispatch rules in use choose
(`use_rules`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from ..config import STRIP, GemmTypes, KernelConfig
from ..dispatch.cuda import capability
from ..dtypes import ALL, U4, U4B8, U8, U8B128, DType
from ..errors import ArchError, InputError, UnsupportedError, WeightError
from ..formats import pack
from ..formats.blocks import count_groups
from ..formats.elements import rounding
from ..formats.packed import find_format
from ..vllm.machete.cutlass import DataType, named
from ..vllm.machete.plan import load_catalog, type_configs
from ..vllm.machete.schedules import schedule_kernel, schedules, splits
from ..vllm.machete.types import TypeConfig, generate_type_option_name, parse_sch_sig
from .operators import gemm
from .packing import pack_weight
from .tensors import DTYPES, ELEMENTS
from .weight import PackedWeight

_WEIGHTS = {"uint4": U4, "uint4b8": U4B8, "uint8": U8, "uint8b128": U8B128}  # names of vLLM's scalar types
_NATIVE = {"e4m3": "e4m3fn"}  # where the documents have another name
_NEEDED = ("a", "b_q_weight")  # of the tensors
_OUTPUTS = (DataType.f16, DataType.bf16)
_ELEMENTS = {
    None: DataType.void,
    torch.float16: DataType.f16,
    torch.bfloat16: DataType.bf16,
    torch.float32: DataType.f32,
    torch.int8: DataType.s8,
    torch.float8_e4m3fn: DataType.e4m3,
}


class _Shape(NamedTuple):
    """What a weight's tensors must fit, besides each other."""

    weight: DType
    scales: torch.dtype
    n: int
    k: int
    group_size: int


class _Groups(NamedTuple):
    """Packed scales and zero points, and what they were made from.

    Args:
        shape: The weight's.
        sources: Tensors of scales and zeros, by identity and version; None where there are none.
        scales: As in `PackedWeight`.
        zeros: As in `PackedWeight`.
    """

    shape: _Shape
    sources: tuple[tuple[WeakIdRef, int] | None, ...]
    scales: torch.Tensor
    zeros: torch.Tensor | None


# Prepacked weight -> what was last packed beside it: the operator takes scales as checkpoints hold them.
_packed: WeakIdKeyDictionary = WeakIdKeyDictionary()


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
    weight_type = _weight_type(b_type)
    types = _documented(
        a.dtype,
        weight_type,
        *(None if one is None else one.dtype for one in (b_group_scales, b_group_zeros)),
        *(None if one is None else one.dtype for one in (b_channel_scales, a_token_scales)),
        a.dtype if out_type is None else out_type,
    )
    group_size = -1 if b_group_size is None else b_group_size
    native = _native(types)
    if native is None:
        raise UnsupportedError(
            f"machete_mm is not implemented for {generate_type_option_name(types)}; implemented:"
            + "".join(f"\n  {generate_type_option_name(one)}" for one in _implemented())
        )
    config, split_k = (None, True) if schedule is None else _find_schedule(schedule, native, group_size)
    if a.dim() != 2 or a.shape[0] < 1:
        raise InputError(f"activations must be [m, k] with m at least 1 (got {tuple(a.shape)})")
    if a.is_cuda and capability(a.get_device()) != (9, 0):
        have = "{}.{}".format(*capability(a.get_device()))
        raise ArchError(f"machete kernels need a GPU of 9.0 (got {have}); billhook.gemm serves others")
    features = b_channel_scales if b_group_scales is None else b_group_scales
    n = features.shape[-1] if features is not None and features.dim() else 0
    shape = _Shape(native.b, DTYPES[native.c], n, a.shape[1], group_size)
    _check_packed(b_q_weight, shape)
    groups = _find_groups(b_q_weight, b_group_scales, b_group_zeros, shape)
    weight = PackedWeight(
        b_q_weight,
        groups.scales,
        shape.n,
        shape.k,
        group_size,
        format=native.b.name,
        zeros=groups.zeros,
    )
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
    weight = _weight_type(b_type)
    known = [types for types in _implemented() if types.b is named(weight.name)]
    if not any(
        (types.a, types.b_group_scale) == (_ELEMENTS.get(a_type), _ELEMENTS.get(group_scales_type))
        for types in known
    ):
        raise UnsupportedError(
            f"no machete kernel multiplies {weight} weights with {group_scales_type} scales of groups by "
            f"{a_type}; implemented:"
            + "".join(f"\n  {generate_type_option_name(one)}" for one in _implemented())
        )
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
    types = _documented(
        a_type,
        _weight_type(b_type),
        group_scales_type,
        group_zeros_type,
        channel_scales_type,
        token_scales_type,
        a_type if out_type is None else out_type,
    )
    native = _native(types)
    if native is None:
        return []
    groups = find_format(native.b.name).group_sizes
    return [name for name in schedules() if any(name in _legal(native, group) for group in groups)]


def _weight_type(b_type: object) -> DType:
    """Return the type of weights that vLLM's scalar type, its name or ours means."""
    name = str(b_type)
    found = _WEIGHTS.get(name) or ALL.get(name)
    if found is None or found not in _WEIGHTS.values():
        known = ", ".join(f"{long} or {one}" for long, one in _WEIGHTS.items())
        raise UnsupportedError(f"no machete kernel has weights of type {name}; implemented: {known}")
    return found


def _documented(a: torch.dtype, weight: DType, *others: torch.dtype | None) -> TypeConfig:
    """Return element types in the documented form.

    Args:
        a: Activations.
        weight: Weights.
        others: Group scales, group zeros, channel scales, token scales, output.

    Raises:
        UnsupportedError: One is a type that no Machete kernel takes for anything.
    """
    wrong = next((one for one in (a, *others) if one not in _ELEMENTS), None)
    if wrong is not None:
        known = ", ".join(str(one) for one in _ELEMENTS if one is not None)
        raise UnsupportedError(f"no machete kernel takes {wrong}; known: {known}")
    scale, zero, channel, token, out = (_ELEMENTS[one] for one in others)
    accumulator = DataType.s32 if a == torch.int8 else DataType.f32
    return TypeConfig(_ELEMENTS[a], named(weight.name), scale, zero, channel, token, out, accumulator)


@cache
def _implemented() -> tuple[TypeConfig, ...]:
    """Return the documented types that have kernels, in the documented order; then others of bf16 outputs."""
    documented = [types for one in load_catalog().types for types in type_configs(one)]
    others = [_with_output(types, DataType.bf16) for types in documented if types.a not in _OUTPUTS]
    return tuple(types for types in (*documented, *others) if _native(types) is not None)


def _with_output(types: TypeConfig, out: DataType) -> TypeConfig:
    """Return types with another output, and group scales, if there are any, of its type."""
    scale = types.b_group_scale
    return replace(types, out=out, b_group_scale=scale if scale is DataType.void else out)


@cache
def _native(types: TypeConfig) -> GemmTypes | None:
    """Return the types of the kernels that serve documented ones; None if there are none."""
    a, b, c = (ALL.get(_NATIVE.get(str(one.value), str(one.value))) for one in (types.a, types.b, types.out))
    if a is None or b is None or c is None:
        return None
    native, of_groups, other = GemmTypes(a, b, c, c), [types.out], DataType.void
    if a.bits == 8:
        of_groups, other = [types.out, DataType.void], DataType.f32
    if types.b_group_scale not in of_groups or (types.b_channel_scale, types.a_token_scale) != (other, other):
        return None
    zero = types.b_group_scale if native.b.zero_point else DataType.void
    if types.b_group_zeropoint is not zero or native.b not in _WEIGHTS.values():
        return None
    return native if any(_legal(native, group) for group in find_format(native.b.name).group_sizes) else None


@cache
def _legal(types: GemmTypes, group_size: int) -> dict[str, KernelConfig]:
    """Return the schedules of `schedules` that have a kernel for a format, with that kernel."""
    kernels = {name: schedule_kernel(one, types, group_size) for name, one in schedules().items()}
    return {name: config for name, (config, why_not) in kernels.items() if why_not is None}


@cache
def _find_schedule(name: str, types: GemmTypes, group_size: int) -> tuple[KernelConfig, bool]:
    """Return a schedule's kernel for a format, and whether tiles are split.

    Raises:
        UnsupportedError: It has none, or is none; the message lists those of the documented tiles that have.
    """
    what, schedule = "does not exist", parse_sch_sig(name)
    if schedule is not None:
        config, why_not = schedule_kernel(schedule, types, group_size)
        if why_not is None:
            return config, splits(schedule)
        what = f"has no kernel here: {why_not}"
    raise UnsupportedError(
        f"schedule {name!r} {what}; for {types} with group_size {group_size} there are: "
        f"{', '.join(_legal(types, group_size)) or 'none'}"
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


def _find_groups(
    weight: torch.Tensor, scales: torch.Tensor | None, zeros: torch.Tensor | None, shape: _Shape
) -> _Groups:
    """Return packed scales and zero points: those packed beside the weight before, if nothing has changed."""
    found: _Groups | None = _packed.get(weight)
    if found is not None and found.shape == shape and found.sources == _sources(scales, zeros):
        return found
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "scales and zeros are packed by the first machete_mm with them, which waits for the GPU: call it "
            "once before the stream is captured"
        )
    made = _ones(weight, shape) if scales is None else _pack_groups(scales, zeros, shape)
    if made.scales.is_cuda:  # kernels request scales before the kernel ahead of them in the stream has ended
        torch.cuda.current_stream(made.scales.device).synchronize()
    _packed[weight] = made
    return made


def _ones(weight: torch.Tensor, shape: _Shape) -> _Groups:
    """Return packed scales of one: with 8-bit activations float32 scales of the channels do all."""
    if shape.group_size != -1:
        raise WeightError(f"b_group_size must be None or -1 without b_group_scales (got {shape.group_size})")
    packed = pack.scale_shape(shape.n, shape.k, -1)
    ones = torch.ones(packed, dtype=shape.scales, device=weight.device)
    return _Groups(shape, _sources(None, None), ones, None)


def _sources(*tensors: torch.Tensor | None) -> tuple[tuple[WeakIdRef, int] | None, ...]:
    """Return tensors by identity and version; inference tensors have no version."""
    return tuple(
        None if one is None else (WeakIdRef(one), 0 if one.is_inference() else one._version)
        for one in tensors
    )


def _pack_groups(scales: torch.Tensor, zeros: torch.Tensor | None, shape: _Shape) -> _Groups:
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
    return _Groups(
        shape,
        _sources(scales, zeros),
        _order(scales, shape),
        None if points is None else _order(points, shape),
    )


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
