"""A module that holds one packed weight: what the layers of this package are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..errors import WeightError
from ..ops import PackedWeight, quantize_activations
from ..ops.kinds import find_kind


class Packed(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A packed weight as buffers, named as in `PackedWeight.state_dict`.

    The module moves between devices, never between types: `.half()`, `.to(torch.bfloat16)` and the like
    leave it as it was packed.

    Args:
        weight: The packed weight; its memory is shared.
        activations: float8_e4m3fn or int8, to which inputs are quantized; None to leave them in 16 bits where
            the weight is multiplied by those.
        input_scale: A static scale for all of them, such as a checkpoint's; None to find one for each token.

    Raises:
        WeightError: The weight is not multiplied by such activations, or a scale that is not positive and
            finite.
    """

    meta: torch.Tensor
    input_scale: torch.Tensor | None

    def __init__(
        self,
        weight: PackedWeight,
        activations: torch.dtype | None = None,
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weight, PackedWeight):
            raise WeightError(
                f"weight must be a billhook.PackedWeight (got {type(weight).__name__}); "
                "quantize_weight makes one"
            )
        self._weight = weight
        for name, tensor in weight.state_dict().items():
            self.register_buffer(name, tensor)
        if activations is None and weight.dtype not in weight.dtypes:
            (activations,) = weight.dtypes
        if activations is not None and find_kind(weight.format, activations, weight.scales.dtype) is None:
            raise WeightError(f"{weight} is not multiplied by {activations} activations")
        if input_scale is not None and activations is None:
            raise WeightError(f"an input scale is for 8-bit activations; name their type (got {input_scale})")
        self.activations = activations
        scale = None
        if input_scale is not None:
            scale = torch.tensor([input_scale], dtype=torch.float32, device=weight.device)
            if not (math.isfinite(scale) and scale > 0):
                raise WeightError(f"input_scale must be positive and finite in float32 (got {input_scale})")
        self.register_buffer("input_scale", scale)

    @property
    def weight(self) -> PackedWeight:
        """The packed weight."""
        return self._weight

    def quantize_input(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return activations as they are multiplied, with the scales of tokens if those have 8 bits.

        Args:
            x: [m, k] of one of the types that the output may have.

        Raises:
            WeightError: Another type.
        """
        if self.activations is None:
            return x, None
        if x.dtype not in self._weight.outputs:
            names = " or ".join(map(str, self._weight.outputs))
            raise WeightError(f"the input must be {names} (got {x.dtype})")
        return quantize_activations(x, self.activations, self.input_scale)

    def extra_repr(self) -> str:
        """Describe the weight, for `print(model)`."""
        if self.activations is None:
            return str(self._weight)
        how = "a scale for each token" if self.input_scale is None else "a static scale"
        return f"{self._weight}, {self.activations} activations with {how}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Packed:
        """Move every tensor as torch asks, keeping its type; the sizes in `meta` stay on the host."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if tensor is self.meta:
                return tensor
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        self._weight = PackedWeight.from_state_dict(self._buffers)
        return self

    def _load_from_state_dict(  # noqa: PLR0917 - as torch calls it
        self,
        state_dict: dict[str, torch.Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take over the tensors, and the sizes and group size that come with them."""
        wrong = []
        for name, held in self._buffers.items():
            given = state_dict.get(f"{prefix}{name}", held)
            if held is not None and given.dtype != held.dtype:
                wrong.append(f"{prefix}{name} is {given.dtype}; this module holds {held.dtype}")
        if wrong:
            error_msgs += wrong  # torch would cast in silence
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        try:
            self._weight = PackedWeight.from_state_dict(self._buffers)
        except WeightError as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
