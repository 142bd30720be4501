"""Where a model's weights come from: a packed folder, or a quantized checkpoint that is packed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..checkpoint import Fused, Tensor, open_checkpoint, open_packed
from ..config import STRIP
from ..errors import WeightError
from ..formats import host
from ..models import WeightFormat
from ..ops import PackedWeight, from_arrays, pack_quantized, unpack_weight
from ..ops.tensors import DTYPES, ELEMENTS, from_numpy


class Layer(NamedTuple):
    """A quantized GEMM's weight on its device, with what belongs to it; see `QuantLinear`.

    Args:
        weight: The weight.
        bias: As `QuantLinear` has it.
        input_order: As `QuantLinear` has it.
        stored: How it is stored, and which 8-bit activations the checkpoint asks for.
        input_scales: float32 [modules] or [experts, modules], their static scales; None to find one for each
            token.
    """

    weight: PackedWeight
    bias: torch.Tensor | None
    input_order: torch.Tensor | None
    stored: WeightFormat
    input_scales: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Source:
    """A folder of weights.

    Args:
        dtype: Type of the activations.
        modules: The quantized GEMMs, as an engine fuses them, by name.
        plain: The tensors that are not quantized, by name.
        read: Reads one of `modules`.
        array: Reads one of `plain`.
    """

    dtype: torch.dtype
    modules: Mapping[str, Fused]
    plain: Mapping[str, Tensor]
    read: Callable[[str], Layer]
    array: Callable[[str], npt.NDArray[Any]]


def open_source(
    folder: Path, device: torch.device, dtype: torch.dtype | None, *, fold: bool = False
) -> Source:
    """Open a quantized checkpoint; reads headers only.

    Args:
        folder: The folder.
        device: Where to put what is read.
        dtype: Type of the activations; None if the config does not say.
        fold: Whether to fold scales of groups into weights where the config asks for e4m3 activations.

    Raises:
        ConfigError: A config that makes no sense.
        WeightError: A damaged file, a tensor that is missing or extra, or activations of another type.
        UnsupportedError: A format that is not built.
    """
    if dtype not in ELEMENTS:
        raise WeightError(
            f"{folder}: activations are float16 or bfloat16 (got {dtype}, by its config); "
            "name one with dtype=torch.bfloat16"
        )
    checkpoint = open_checkpoint(folder, fold=fold)

    def read(name: str) -> Layer:
        found = checkpoint.read(name)
        weight = pack_quantized(found.parts, device, dtype)
        bias, order = _tensor(found.bias, device, dtype), _tensor(found.input_order, device)
        return Layer(weight, bias, order, checkpoint.modules[name].stored, found.input_scales)

    return Source(dtype, checkpoint.modules, checkpoint.plain, read, checkpoint.array)


def open_packed_source(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Source:
    """Open a folder that `billhook pack` wrote; reads headers only.

    Args:
        folder: The folder.
        device: Where to put what is read.
        dtype: Type of the activations; what the folder was packed for if None.

    Raises:
        ConfigError: A config that makes no sense, or a folder not packed to the end.
        WeightError: A damaged file, a tensor that is missing or extra, or activations of another type.
    """
    packed = open_packed(folder)
    own = DTYPES[packed.activations]
    if dtype not in (None, own):
        raise WeightError(f"{folder} is packed for {own} (asked for {dtype}); load it so, or pack it again")

    def read(name: str) -> Layer:
        found = packed.read(name)
        weight = from_arrays(found.weight, device)
        bias, order = _tensor(found.bias, device, own), _tensor(found.input_order, device)
        return Layer(weight, bias, order, packed.modules[name].stored, found.input_scales)

    return Source(own, packed.modules, packed.plain, read, packed.array)


def _tensor(
    array: npt.NDArray[Any] | None, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor | None:
    return None if array is None else from_numpy(array).to(device, dtype)


def split_layer(layer: Layer, sizes: Sequence[int]) -> Iterator[Layer]:
    """Yield the parts of a dense layer that an engine fuses of several, each with memory of its own.

    Args:
        layer: The layer.
        sizes: Output features of each part.
    """
    start = 0
    for part, size in enumerate(sizes):
        stop = start + size
        scales = layer.input_scales
        yield layer._replace(
            weight=take_outputs(layer.weight, start, stop),
            bias=None if layer.bias is None else layer.bias[start:stop].clone(),
            input_scales=None if scales is None else scales[part : part + 1],
        )
        start = stop


def take_outputs(weight: PackedWeight, start: int, stop: int) -> PackedWeight:
    """Return some of a dense weight's outputs as a weight with memory of its own.

    Args:
        weight: The weight.
        start: The first output feature.
        stop: The one after the last.
    """
    if (start, stop) == (0, weight.n):
        return weight
    channels = weight.channel_scales
    if start % STRIP == 0 and (stop % STRIP == 0 or stop == weight.n):
        strips = slice(start // STRIP, -(-stop // STRIP))
        return replace(
            weight,
            codes=weight.codes[strips].clone(),
            scales=weight.scales[strips].clone(),
            zeros=None if weight.zeros is None else weight.zeros[strips].clone(),
            channel_scales=None if channels is None else channels[start:stop].clone(),
            n=stop - start,
        )
    value = unpack_weight(weight)  # a strip is shared: pack both sides anew
    parts, columns = host.split(value), (..., slice(start, stop))
    taken = parts._replace(
        codes=value.codes[columns],
        scales=parts.scales[columns],
        zeros=None if parts.zeros is None else parts.zeros[columns],
        channel_scales=None if parts.channel_scales is None else parts.channel_scales[start:stop],
    )
    return pack_quantized(taken, weight.device, weight.dtype)
