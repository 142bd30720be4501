"""Random weights of every format, with their exact values: what kernels are checked with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..dtypes import E4M3FN, E8M0FNU
from ..formats.blocks import count_groups
from ..formats.minifloat import decode
from ..formats.mx import SCALE_BIAS
from ..weights import PackedFormat
from .packing import pack_weight
from .tensors import round_e4m3
from .weight import PackedWeight

_SIGN, _NAN = 0x80, 0x7F  # of e4m3
_CHANNEL_BITS = 11  # channel scales of folded weights, whose numbers are up to 448, are about 2^-11
_ONE_BITS = 6  # scales of integer codes are about 2^-6, so that sums of products stay in float16's range


@dataclass(frozen=True, eq=False)
class Drawn:
    """Random codes and scales in the order of the GEMM; every code that stands for a number occurs.

    Args:
        held: The format.
        codes: uint8 [k, n].
        scales: [groups, n]; uint8 codes of e8m0 and e4m3 scales.
        zeros: uint8 [groups, n], or None.
        global_scales: float32 [1], or None.
        group_size: Weights along k that share one scale; -1 for channel scales.
        channel_scales: float32 [n] of folded weights, or None.
    """

    held: PackedFormat
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    global_scales: torch.Tensor | None
    group_size: int
    channel_scales: torch.Tensor | None = None

    def pack(self) -> PackedWeight:
        """Return the packed weight."""
        return pack_weight(
            self.codes,
            self.scales,
            self.group_size,
            format=self.held.name,
            zeros=self.zeros,
            global_scales=self.global_scales,
            channel_scales=self.channel_scales,
        )

    def exact(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the weights of some columns, float64 [k, columns].

        Args:
            columns: Their numbers, int64.
        """
        numbers = self._numbers[self.codes[:, columns].int()]
        scales = self._decode_scales(self.scales[:, columns])
        if self.zeros is not None:
            numbers = numbers - self.zeros[:, columns].double()[self._group]
        if self.channel_scales is None:
            return numbers * scales[self._group]
        products = (numbers * scales[self._group]).float()  # exact: 8 bits
        return round_e4m3(products).double() * self.channel_scales[columns].double()

    @cached_property
    def _group(self) -> torch.Tensor:
        """The group of each input feature, int64 [k]."""
        k = len(self.codes)
        return torch.arange(k, device=self.codes.device) // (k if self.group_size == -1 else self.group_size)

    @cached_property
    def _numbers(self) -> torch.Tensor:
        """What each code stands for before zero points and scales, float64."""
        weight = self.held.weight
        codes = np.arange(2**weight.bits)
        numbers = (
            codes - float(weight.bias) if weight.kind == "int" else decode(codes.astype(np.uint8), weight)
        )
        return torch.from_numpy(numbers).to(self.codes.device)

    def _decode_scales(self, scales: torch.Tensor) -> torch.Tensor:
        if self.held.scale == E8M0FNU:
            return torch.ldexp(torch.ones_like(scales, dtype=torch.float64), scales.int() - SCALE_BIAS)
        if self.held.scale is None:
            return scales.double()
        table = torch.from_numpy(decode(np.arange(256, dtype=np.uint8), self.held.scale)).to(scales.device)
        numbers = table[scales.int()]
        return numbers if self.global_scales is None else numbers * self.global_scales.double()


def draw(
    held: PackedFormat,
    k: int,
    n: int,
    group_size: int,
    *,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Drawn:
    """Draw a dense weight on the generator's device.

    Scales have both signs where the format has them, and are such that products with normal activations
    stay in float16's range up to k of 30,000.

    Args:
        held: The format.
        k: Input features.
        n: Output features.
        group_size: Weights along k that share one scale; -1 for channel scales.
        dtype: Type of the output, float16 or bfloat16.
        generator: Source of random numbers.
    """

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(
            low, high, shape, dtype=torch.uint8, device=generator.device, generator=generator
        )

    weight, groups = held.weight, count_groups(k, group_size)
    codes = integers(0, 2**weight.bits, k, n)
    every = min(2**weight.bits, k * n)
    codes.view(-1)[:every] = torch.arange(every, device=codes.device).to(torch.uint8)
    if weight == E4M3FN:
        codes[(codes & _NAN) == _NAN] = 0
    if held.scale == E8M0FNU:
        scales = integers(SCALE_BIAS - 8, SCALE_BIAS - 3, groups, n)
    elif held.scale == E4M3FN:
        scales = integers(0, _NAN, groups, n)
        if held.folded:
            scales |= integers(0, 2, groups, n) * _SIGN
    else:
        normal = torch.randn((groups, n), device=generator.device, generator=generator) / 2**_ONE_BITS
        scales = (normal.abs() if weight == E4M3FN else normal).to(dtype)
    zeros = integers(0, 2**weight.bits, groups, n) if weight.zero_point else None
    whole = None
    if held.global_scale:
        whole = torch.rand(1, device=generator.device, generator=generator) / 2**9 + 2.0**-10
    channels = None
    if held.folded:
        channels = torch.randn(n, device=generator.device, generator=generator) / 2**_CHANNEL_BITS
    return Drawn(held, codes, scales, zeros, whole, group_size, channels)
