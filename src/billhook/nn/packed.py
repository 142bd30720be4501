"""A module that holds one packed weight: what the layers of this package are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import WeightError
from ..ops import PackedWeight


class Packed(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A packed weight as buffers, named as in `PackedWeight.state_dict`.

    The module moves between devices, never between types: `.half()`, `.to(torch.bfloat16)` and the like
    leave it as it was packed.

    Args:
        weight: The packed weight; its memory is shared.
    """

    meta: torch.Tensor

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        if not isinstance(weight, PackedWeight):
            raise WeightError(
                f"weight must be a billhook.PackedWeight (got {type(weight).__name__}); "
                "quantize_weight makes one"
            )
        self._weight = weight
        for name, tensor in weight.state_dict().items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> PackedWeight:
        """The packed weight."""
        return self._weight

    def extra_repr(self) -> str:
        """Describe the weight, for `print(model)`."""
        return str(self._weight)

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
