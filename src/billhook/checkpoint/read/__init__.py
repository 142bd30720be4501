"""A linear module's tensors -> its weight as a host value of `formats/`, in the order of the GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import WeightError
from ...formats import host
from ...formats.host import HostWeight, Parts
from ...formats.order import Order
from ...models import WeightFormat
from ..modules import Linear
from .awq import read_awq
from .checks import read_magnitudes, read_named, read_scales, refuse
from .fp4 import read_experts, read_experts_bias, read_global_scale, read_mxfp4, read_nvfp4
from .fp8 import read_fp8, read_mxfp8
from .gptq import read_gptq
from .integers import read_int_quantized, read_pack_quantized

__all__ = ["Weight", "read_global_scale", "read_named", "read_weight"]


@dataclass(frozen=True)
class Weight:
    """A weight read from a checkpoint.

    Args:
        parts: Codes, scales and zero points; weights [k, n], or [experts, k, n].
        bias: [n] or [experts, n], as stored; None if there is none.
        input_order: int32 [k], the input features in the order of the weight's rows: the product is
            `x[:, input_order] @ weights`; None if they are in order.
        input_scales: float32 [modules] or [experts, modules], the static scale with which the inputs of each
            module that is part of the weight are quantized to 8 bits; None if there is none.
    """

    parts: Parts
    bias: npt.NDArray[Any] | None = None
    input_order: Order | None = None
    input_scales: npt.NDArray[np.float32] | None = None

    @property
    def value(self) -> HostWeight:
        """The weight with its codes read from their words.

        Raises:
            WeightError: Parts that do not fit each other.
        """
        return host.join(self.parts)


def read_weight(linear: Linear, wanted: WeightFormat, static: bool) -> Weight:
    """Read the weight of a quantized module.

    Args:
        linear: The module.
        wanted: How it is stored, by the config.
        static: Whether to read the static scale of its inputs.

    Raises:
        WeightError: A value that no such weight has; names file, tensor, place and value.
    """
    try:
        parts, order = _read_parts(linear, wanted)
    except WeightError as error:
        if linear.name in str(error):
            raise
        raise WeightError(f"{linear.file}: {linear.name}: {error}") from error
    return Weight(parts, _read_bias(linear), order, _read_input_scale(linear) if static else None)


def is_interleaved(linear: Linear) -> bool:
    """Return whether rows of a gate and an up projection take turns, as in gpt-oss."""
    return bool(linear.stored.num_experts) and linear.name.endswith("gate_up_proj")


def _read_parts(linear: Linear, wanted: WeightFormat) -> tuple[Parts, Order | None]:
    parts, stored = linear.parts, linear.stored
    name = stored.format
    if name in ("gptq", "gptq_v2"):
        return read_gptq(parts, stored, wanted)
    if name == "pack-quantized":
        return read_pack_quantized(parts, stored, wanted)
    if name == "awq":
        return read_awq(parts, stored, wanted), None
    if name == "int-quantized":
        return host.split(read_int_quantized(parts, stored, wanted)), None
    if name == "fp8":
        return host.split(read_fp8(parts, stored, wanted)), None
    if name == "mxfp8":
        return host.split(read_mxfp8(parts)), None
    if name == "nvfp4":
        return read_nvfp4(parts), None
    if name == "mxfp4":
        return read_experts(parts, is_interleaved(linear)) if stored.num_experts else read_mxfp4(parts), None
    raise WeightError(f"is stored as {name}, which is not read")


def _read_input_scale(linear: Linear) -> npt.NDArray[np.float32]:
    tensor = linear.parts["input_scale"]
    scale = read_magnitudes(tensor).reshape(1)
    refuse(tensor, scale, scale == 0, "a static scale of activations must be positive")
    return scale


def _read_bias(linear: Linear) -> npt.NDArray[Any] | None:
    if "bias" not in linear.parts:
        return None
    if linear.stored.num_experts:
        return read_experts_bias(linear.parts["bias"], is_interleaved(linear))
    return read_scales(linear.parts["bias"], "biases")
