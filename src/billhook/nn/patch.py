"""Quantize a transformers model in memory: its linear layers and experts become packed ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from ..errors import InputError, UnsupportedError
from ..ops import quantize_weight, stack_weights
from .linear import QuantLinear
from .moe import Activation, QuantMoE, clamped_swiglu, silu_and_mul

_MULTIPLE = 16  # kernels take no other sizes
_MOST_WORKERS = 8  # each holds a few float32 copies of a weight
# Classes of experts that make the inner features of gate and up in a way of their own.
_ACTIVATIONS: dict[str, Activation] = {"GptOssExperts": clamped_swiglu}
_PLAIN_GATE = "_default_apply_gate"  # what transformers gives the other classes: act_fn(gate) * up


def quantize_model(
    model: torch.nn.Module,
    format: str = "u4b8",  # noqa: A002 - as in quantize_weight
    group_size: int | None = None,
    *,
    ignore: Iterable[str] = ("lm_head",),
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Quantize a model's linear layers and experts in place, rounding to nearest.

    A few layers at a time are held in both forms. Linear layers whose sizes are not multiples of 16, such as
    a gate of one output, stay as they are.

    Args:
        model: A transformers model, or any module with linear layers.
        format: How weights are stored, such as u4b8 or mxfp4.
        group_size: Weights along k that share one scale; -1 for one scale per output channel; the format's
            own by default.
        ignore: What stays as it is: full names of modules, last parts of names, or `re:PATTERN`.
        dtype: Type of the activations, float16 or bfloat16; each layer's own by default.

    Returns:
        The names of the layers that were quantized.

    Raises:
        InputError: A pattern is wrong, or nothing is left to quantize.
        UnsupportedError: Experts of a kind that is not known.
        WeightError: The weights have no such format: types, or values that are not finite.
    """
    ignored = _matcher(ignore)
    names = [name for name, _ in quantizable(model) if not ignored(name)]
    if not names:
        raise InputError(
            f"{type(model).__name__} has no linear layer or experts to quantize beside those to ignore"
        )

    def quantize(name: str) -> None:
        module = model.get_submodule(name)
        if isinstance(module, torch.nn.Linear):
            quantized = QuantLinear.from_linear(module, format, group_size, dtype=dtype)
        else:
            quantized = quantize_experts(module, format, group_size, dtype=dtype)
        model.set_submodule(name, quantized)

    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(quantize, names):  # raises what a worker raised
            pass
    return names


def quantizable(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield every linear layer of sizes that kernels take, and every layer's experts, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            if module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0:
                yield name, module
        elif is_experts(module):
            yield name, module


def is_experts(module: torch.nn.Module) -> bool:
    """Tell whether a module holds the experts of a layer, as transformers 5 stores them: stacked."""
    stacked = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(one, torch.nn.Parameter) and one.dim() == 3 for one in stacked)


def experts_activation(experts: torch.nn.Module) -> Activation:
    """Return what makes the inner features of transformers' experts.

    Raises:
        UnsupportedError: It is none of those built.
    """
    name = type(experts).__name__
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    gate = getattr(experts, "_apply_gate", None)
    act_fn = getattr(experts, "act_fn", None)
    if getattr(gate, "__name__", "") == _PLAIN_GATE and _is_silu(act_fn):
        return silu_and_mul
    raise UnsupportedError(
        f"experts of class {name} with activation {act_fn!r} are not built; built are silu(gate) * up and "
        f"{', '.join(_ACTIVATIONS)}; name them in ignore"
    )


def quantize_experts(
    experts: torch.nn.Module,
    format: str,  # noqa: A002 - as in quantize_weight
    group_size: int | None,
    *,
    dtype: torch.dtype | None = None,
) -> QuantMoE:
    """Quantize the experts of a layer, as transformers stores them; the result lies where they do.

    Args:
        experts: With `gate_up_proj` and `down_proj`, and their biases if there are.
        format: As in `quantize_model`.
        group_size: As in `quantize_model`.
        dtype: As in `quantize_model`.

    Raises:
        UnsupportedError: Experts of a kind that is not known.
        WeightError: The weights have no such format.
    """
    activation = experts_activation(experts)
    weights, biases = [], []
    for name in ("gate_up_proj", "down_proj"):
        stored, bias = getattr(experts, name).detach(), getattr(experts, f"{name}_bias", None)
        weight = stored if getattr(experts, "is_transposed", False) else stored.mT  # [experts, k, n]
        if name == "gate_up_proj" and not getattr(experts, "is_concatenated", True):
            weight, bias = _gate_first(weight), None if bias is None else _gate_first(bias)
        weights.append(
            stack_weights([quantize_weight(one, group_size, dtype, format=format) for one in weight])
        )
        biases.append(None if bias is None else bias.to(dtype or stored.dtype))
    return QuantMoE(*weights, *biases, activation=activation, complete=True)


def _gate_first(gate_up: torch.Tensor) -> torch.Tensor:
    """Return what alternates along the last axis as all of gate, then all of up."""
    return torch.cat([gate_up[..., ::2], gate_up[..., 1::2]], dim=-1)


def _is_silu(act_fn: object) -> bool:
    return type(act_fn).__name__ in ("SiLU", "SiLUActivation")  # torch's, transformers'


def _matcher(ignore: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a module's name is one of those to ignore."""
    names, patterns = set(), []
    for one in ignore:
        if one.startswith("re:"):
            try:
                patterns.append(re.compile(one.removeprefix("re:")))
            except re.error as error:
                raise InputError(f"ignore: {one!r} is not a regular expression: {error}") from error
        else:
            names.add(one)
    return lambda name: (
        name in names or name.rpartition(".")[2] in names or any(pattern.match(name) for pattern in patterns)
    )
