"""vLLM's Machete: dense products of integer weights, its schedule chosen by its own heuristic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights
from .vllm import SCALAR_TYPES, load, read_version

if TYPE_CHECKING:
    import torch

FORMATS = ("u4", "u4b8", "u8", "u8b128")
GROUP_SIZES = (-1, 64, 128)


class Machete:
    """Dense Machete."""

    name = "machete"

    def version(self) -> str:
        """Return vLLM's release."""
        return read_version()

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Prepack the codes; scales stay as they are, zero points are multiplied by them."""
        import torch

        load("_C.abi3.so")
        layer = weights.workload
        if layer.moe:
            raise UnsupportedError("dense layers only")
        if layer.held.name not in FORMATS or layer.types.a.bits == 8:
            served = f"16-bit activations and weights {', '.join(FORMATS)} only"
            raise UnsupportedError(f"no {layer.types.a} x {layer.held.name}: {served}")
        if layer.k % 64 or layer.n % 128:
            raise UnsupportedError(
                f"refused shape: n must be a multiple of 128, k of 64 (got {layer.n} x {layer.k})"
            )
        if layer.group_size not in GROUP_SIZES:
            raise UnsupportedError(f"refused group_size {layer.group_size}: -1, 64 and 128 are served")
        kind = SCALAR_TYPES[layer.types.b]
        scales = weights.scales[0].contiguous()
        columns = weights.words[0].t().contiguous().t()
        codes = torch.ops._C.machete_prepack_B(columns, scales.dtype, kind, scales.dtype)
        zeros = None
        if weights.zeros is not None:
            zeros = (-scales.float() * weights.zeros[0].float()).to(scales.dtype)
        packed = [(codes, scales, zeros)]
        for _ in range(max(case.copies for case in cases) - 1):
            packed.append((_clone_columns(codes), scales.clone(), None if zeros is None else zeros.clone()))

        def bind(inputs: Inputs) -> Launch:
            def call(copy: int) -> torch.Tensor:
                codes, scales, zeros = packed[copy]
                return torch.ops._C.machete_mm(
                    inputs.a,
                    codes,
                    kind,
                    None,  # output type: that of A
                    scales,
                    zeros,
                    layer.group_size,
                    None,  # channel scales
                    None,  # token scales
                    None,  # schedule: its own choice
                )

            return Launch(call, "machete_mm")

        return bind


def _clone_columns(codes: torch.Tensor) -> torch.Tensor:
    """Copy a tensor with its strides, which carry Machete's layout."""
    import torch

    return codes.clone(memory_format=torch.preserve_format)
