"""Put weights into the places that a transformers model has for them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from ..dtypes import DType
from ..errors import UnsupportedError, WeightError
from ..models import agree, choose_activations
from ..ops import PackedWeight
from ..ops.operators import why_unserved
from ..ops.tensors import NARROW_DTYPES, from_numpy
from .linear import QuantLinear
from .moe import QuantMoE
from .patch import experts_activation, is_experts
from .source import Layer, Source, split_layer

# Where checkpoints call a module otherwise than transformers does, by the config's model_type.
_RENAMED = {"mixtral": (".block_sparse_moe.", ".mlp.")}
# A projection of one expert, which transformers stacks with the others: into which parameter, and which part.
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<name>\w+)\.weight")
_STACKED = {
    **dict.fromkeys(("gate_proj", "w1"), ("gate_up_proj", 0)),
    **dict.fromkeys(("up_proj", "w3"), ("gate_up_proj", 1)),
    **dict.fromkeys(("down_proj", "w2"), ("down_proj", 0)),
}
_PARTS = {"gate_up_proj": 2, "down_proj": 1}
# What checkpoints may hold and transformers has no place for: frequencies, which are computed, and scales of
# quantized keys and values, which stay in 16 bits.
_NEEDLESS = ("rotary_emb.inv_freq", ".k_scale", ".v_scale", ".output_scale")


class Placer:
    """Fills a model that was built without memory.

    Args:
        model: A transformers model on the meta device.
        device: Where its tensors shall be.
        dtype: Type of its activations where they have 16 bits.
        narrow: Whether layers quantize their inputs to 8 bits where the checkpoint asks for that.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, narrow: bool = False) -> None:
        self._model = model
        self._dtype = dtype
        self._device = device
        self._rename = _RENAMED.get(model.config.model_type, ("", ""))
        self._stacked: Counter[str] = Counter()  # parts placed, by parameter
        self._narrow = narrow
        self._top_k = getattr(model.config, "num_experts_per_tok", 1)
        self.kept_wide: Counter[str] = Counter()  # inputs that stay in 16 bits nevertheless, by reason

    def fill_buffers(self) -> None:
        """Compute the buffers that no checkpoint holds, such as rotary frequencies."""
        with torch.no_grad():
            for module in self._model.modules():
                names = [name for name in module._non_persistent_buffers_set if getattr(module, name).is_meta]
                for name in names:
                    setattr(module, name, torch.empty_like(getattr(module, name), device=self._device))
                if names:
                    self._model._init_weights(module)

    def place_module(self, name: str, source: Source) -> None:
        """Put a quantized GEMM in the place of the modules that it is made of.

        Args:
            name: Its name in the checkpoint.
            source: The checkpoint.

        Raises:
            WeightError: The model has no such modules, or they have other sizes.
            UnsupportedError: Experts of a kind that is not known.
        """
        fused = source.modules[name]
        if not fused.num_experts:
            layers = split_layer(source.read(name), [part.n for part in fused.parts])
            for part, layer in zip(fused.parts, layers, strict=True):
                self._place_linear(part.name, layer)
            return
        place, _, projection = name.rpartition(".")
        both = {f"{place}.w13", f"{place}.w2"}
        if not both <= source.modules.keys():
            raise UnsupportedError(f"{name}: experts of which but one projection is quantized are not built")
        if projection == "w13":  # w2 is read with it
            self._place_experts(place, *(source.read(one) for one in sorted(both)))

    def _place_linear(self, name: str, layer: Layer) -> None:
        weight, found = layer.weight, self._find(name)
        sizes = (getattr(found, "out_features", None), getattr(found, "in_features", None))
        if not isinstance(found, torch.nn.Linear) or sizes != (weight.n, weight.k):
            raise WeightError(
                f"the checkpoint has {name} of {weight.n} x {weight.k} weights; "
                f"by its config the model has there {found or 'nothing'}"
            )
        _check_bias(name, found.bias is not None, layer)
        weight, bias, order, *_ = layer
        (asked,), scales = self._choose_activations(layer), layer.input_scales
        scale = None if asked is None or scales is None else float(scales.max())
        placed = QuantLinear(weight, bias, order, activations=asked, input_scale=scale)
        self._model.set_submodule(self._own(name), placed)

    def _place_experts(self, name: str, w13: Layer, w2: Layer) -> None:
        found = self._find(name)
        if found is None or not is_experts(found):
            raise WeightError(f"the checkpoint has experts at {name}; by its config the model has none there")
        if w13.input_order is not None or w2.input_order is not None:
            raise UnsupportedError(f"{name}: experts whose inputs are in activation order are not built")
        shape = (found.num_experts, found.gate_up_proj.numel() // found.num_experts)
        if (w13.weight.num_experts, w13.weight.n * w13.weight.k) != shape:
            raise WeightError(
                f"{name} has {w13.weight}; by its config the model has {shape[0]} experts of other sizes"
            )
        for projection, layer in (("w13", w13), ("w2", w2)):
            _check_bias(f"{name}.{projection}", getattr(found, "has_bias", False), layer)
        asked, _ = self._choose_activations(w13, w2, top_ks=(self._top_k, 1))  # of both or of none
        both = [one.input_scales for one in (w13, w2)]
        first, second = (None if one is None else float(one.max()) for one in both)
        experts = QuantMoE(
            w13.weight,
            w2.weight,
            w13.bias,
            w2.bias,
            activation=experts_activation(found),
            complete=True,
            activations=asked,
            input_scales=(first, second) if asked and first is not None and second is not None else None,
        )
        self._model.set_submodule(self._own(name), experts)

    def _choose_activations(self, *layers: Layer, top_ks: Sequence[int] = (1,)) -> list[torch.dtype | None]:
        """Return the types that the inputs of a layer, or of the two of its experts, are quantized to.

        Args:
            layers: The layer, or both of its experts.
            top_ks: Experts that each row of their inputs visits.

        Raises:
            UnsupportedError: No kernel serves a weight that is multiplied by such inputs alone.
        """
        chosen = [
            choose_activations(one.stored, self._narrow, partial(self._why_unserved, one.weight, top_k))
            for one, top_k in zip(layers, top_ks, strict=True)
        ]
        chosen = agree([one.stored for one in layers], chosen)
        self.kept_wide.update(one.why_wide for one in chosen if one.why_wide)
        return [None if one.narrow is None else NARROW_DTYPES[one.narrow] for one in chosen]

    def _why_unserved(self, weight: PackedWeight, top_k: int, activations: DType) -> str | None:
        return why_unserved(weight, NARROW_DTYPES[activations], self._dtype, top_k)

    def place_tensor(self, name: str, source: Source) -> None:
        """Put a tensor that is not quantized into its place.

        Args:
            name: Its name in the checkpoint.
            source: The checkpoint.

        Raises:
            WeightError: The model has no place for it, or one of another shape.
        """
        own = self._own(name)
        module, _, last = own.rpartition(".")
        held = getattr(self._find(module), last, None)
        if isinstance(held, torch.Tensor):
            self._set(own, self._fit(name, source.array(name), held))
            return
        expert = _EXPERT.fullmatch(own)
        if expert and expert["name"] in _STACKED:
            self._place_part(name, expert, source.array(name))
        elif not self._is_needless(own):
            raise WeightError(f"the checkpoint has {name}; by its config the model has no place for it")

    def _place_part(self, name: str, expert: re.Match[str], array: npt.NDArray[Any]) -> None:
        """Put one projection of one expert into the tensor that transformers stacks them in."""
        parameter, part = _STACKED[expert["name"]]
        own = f"{expert['experts']}.{parameter}"
        held, number = getattr(self._find(expert["experts"]), parameter, None), int(expert["number"])
        if not isinstance(held, torch.nn.Parameter) or number >= len(held):
            raise WeightError(f"the checkpoint has {name}; by its config the model has no place for it")
        if held.is_meta:
            held = torch.empty_like(held, device=self._device)
            self._set(own, held)
        target = held.detach()[number].chunk(_PARTS[parameter])[part]
        target.copy_(self._fit(name, array, target))
        self._stacked[own] += 1

    def finish(self, folder: Path) -> None:
        """Tie the tensors that the model shares, and see that nothing is missing.

        Args:
            folder: The checkpoint, for the message.

        Raises:
            WeightError: A tensor is missing.
        """
        self._model.tie_weights()
        tensors = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        missing = [name for name, tensor in tensors.items() if tensor.is_meta]
        missing += [
            name
            for name, placed in self._stacked.items()
            if placed != len(tensors[name]) * _PARTS[name.rpartition(".")[2]]
        ]
        if missing:
            raise WeightError(f"{folder} lacks {missing[0]}, whole or in part ({len(missing)} such tensors)")

    def _own(self, name: str) -> str:
        """Return the model's name for a module or tensor of the checkpoint."""
        return name.replace(*self._rename) if self._rename[0] else name

    def _find(self, name: str) -> torch.nn.Module | None:
        try:
            found: torch.nn.Module = self._model.get_submodule(self._own(name))
        except AttributeError:
            return None
        return found

    def _fit(self, name: str, array: npt.NDArray[Any], held: torch.Tensor) -> torch.Tensor:
        tensor = from_numpy(array)
        if tensor.shape != held.shape or not tensor.is_floating_point():
            raise WeightError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}; by its config the model has "
                f"{held.dtype} {tuple(held.shape)}"
            )
        return tensor.to(self._device, held.dtype)

    def _set(self, own: str, tensor: torch.Tensor) -> None:
        place, _, last = own.rpartition(".")
        module = self._model.get_submodule(place)
        is_parameter = last in module._parameters
        setattr(module, last, torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

    def _is_needless(self, own: str) -> bool:
        patterns = getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or ()
        return own.endswith(_NEEDLESS) or any(re.search(pattern, own) for pattern in patterns)


def _check_bias(name: str, wanted: bool, layer: Layer) -> None:
    """Refuse a layer without the bias that the model has there; one that the model lacks is added."""
    if wanted and layer.bias is None:
        raise WeightError(f"the checkpoint has no bias of {name}; by its config the model has one there")
