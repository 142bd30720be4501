"""The documented types and schedules of Machete as kernels of our own, asked for by torch's types."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from ..config import GemmTypes, KernelConfig
from ..dtypes import ALL, U4, U4B8, U8, U8B128, DType
from ..errors import UnsupportedError
from ..formats.packed import find_format
from ..vllm.machete.cutlass import DataType, named
from ..vllm.machete.plan import load_catalog, type_configs
from ..vllm.machete.schedules import schedule_kernel, schedules, splits
from ..vllm.machete.types import TypeConfig, generate_type_option_name, parse_sch_sig

_WEIGHTS = {"uint4": U4, "uint4b8": U4B8, "uint8": U8, "uint8b128": U8B128}  # names of vLLM's scalar types
_NATIVE = {"e4m3": "e4m3fn"}  # where the documents have another name
_OUTPUTS = (DataType.f16, DataType.bf16)
_ELEMENTS = {
    None: DataType.void,
    torch.float16: DataType.f16,
    torch.bfloat16: DataType.bf16,
    torch.float32: DataType.f32,
    torch.int8: DataType.s8,
    torch.float8_e4m3fn: DataType.e4m3,
}


@cache
def find_types(b_type: str, a: torch.dtype, *others: torch.dtype | None) -> GemmTypes:
    """Return the types of the kernels that serve tensors of these types.

    Args:
        b_type: The name of vLLM's scalar type, or ours.
        a: Activations.
        others: As `_documented_types` takes them.

    Raises:
        UnsupportedError: There are none; the message lists the documented types that have kernels.
    """
    types = _documented_types(a, _weight_type(b_type), *others)
    native = _implemented().get(types)
    if native is None:
        raise UnsupportedError(
            f"machete_mm is not implemented for {generate_type_option_name(types)}; {_list_implemented()}"
        )
    return native


def find_weight_type(b_type: str, a: torch.dtype, scales: torch.dtype | None) -> DType:
    """Return the type of weights that are packed for activations and scales of groups.

    Args:
        b_type: The name of vLLM's scalar type, or ours.
        a: Activations.
        scales: Group scales.

    Raises:
        UnsupportedError: No kernel has these types; the message lists the documented types that have.
    """
    weight = _weight_type(b_type)
    wanted = (_ELEMENTS.get(a), named(weight.name), _ELEMENTS.get(scales))
    if not any((types.a, types.b, types.b_group_scale) == wanted for types in _implemented()):
        raise UnsupportedError(
            f"no machete kernel multiplies {weight} weights with {scales} scales of groups by {a}; "
            f"{_list_implemented()}"
        )
    return weight


def supported_schedules(b_type: str, a: torch.dtype, *others: torch.dtype | None) -> list[str]:
    """Return the names of the schedules of the documented tiles that have a kernel for some group size.

    Args:
        b_type: The name of vLLM's scalar type, or ours.
        a: Activations.
        others: As `_documented_types` takes them.

    Raises:
        UnsupportedError: A type that no Machete kernel takes for anything.
    """
    native = _implemented().get(_documented_types(a, _weight_type(b_type), *others))
    if native is None:
        return []
    groups = find_format(native.b.name).group_sizes
    return [name for name in schedules() if any(name in _legal_schedules(native, group) for group in groups)]


def _weight_type(name: str) -> DType:
    """Return the type of weights that the name of vLLM's scalar type, or ours, means."""
    found = _WEIGHTS.get(name) or ALL.get(name)
    if found is None or found not in _WEIGHTS.values():
        known = ", ".join(f"{long} or {one}" for long, one in _WEIGHTS.items())
        raise UnsupportedError(f"no machete kernel has weights of type {name}; implemented: {known}")
    return found


def _documented_types(a: torch.dtype, weight: DType, *others: torch.dtype | None) -> TypeConfig:
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
def _implemented() -> dict[TypeConfig, GemmTypes]:
    """Return the documented types that have kernels, and those of the kernels.

    In the documented order; then others of bf16 outputs. Kernels of more types are `billhook.gemm`'s.
    """
    documented = [types for one in load_catalog().types for types in type_configs(one)]
    others = [_with_output(types, DataType.bf16) for types in documented if types.a not in _OUTPUTS]
    found = {types: _native_types(types) for types in (*documented, *others)}
    return {types: native for types, native in found.items() if native is not None}


def _list_implemented() -> str:
    return "implemented:" + "".join(f"\n  {generate_type_option_name(one)}" for one in _implemented())


def _with_output(types: TypeConfig, out: DataType) -> TypeConfig:
    """Return types with another output, and group scales, if there are any, of its type."""
    scale = types.b_group_scale
    return replace(types, out=out, b_group_scale=scale if scale is DataType.void else out)


def _native_types(types: TypeConfig) -> GemmTypes | None:
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
    return (
        native
        if any(_legal_schedules(native, group) for group in find_format(native.b.name).group_sizes)
        else None
    )


@cache
def _legal_schedules(types: GemmTypes, group_size: int) -> dict[str, KernelConfig]:
    """Return the schedules of `schedules` that have a kernel for a format, with that kernel."""
    kernels = {name: schedule_kernel(one, types, group_size) for name, one in schedules().items()}
    return {name: config for name, (config, why_not) in kernels.items() if why_not is None}


@cache
def find_schedule(name: str, types: GemmTypes, group_size: int) -> tuple[KernelConfig, bool]:
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
        f"{', '.join(_legal_schedules(types, group_size)) or 'none'}"
    )
