"""Load a quantized checkpoint as a transformers model whose quantized layers are packed ones.

The model is built from its config without memory. Then its layers are read one after the other, packed if the
folder does not hold them packed, and put on the device.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import refuse_unfinished
from ..checkpoint.folder import CONFIG
from ..errors import ConfigError, ToolchainError, UnsupportedError
from ..models import PACKED_METHOD, NarrowActivations, check_folded, read_narrow
from .place import Placer
from .source import open_packed_source, open_source


def load(
    model_dir: str | Path,
    device: torch.device | str = "cuda",
    dtype: torch.dtype | None = None,
    *,
    narrow_activations: NarrowActivations = False,
) -> Any:
    """Load a quantized checkpoint as a transformers model that runs on packed weights.

    Args:
        model_dir: A folder that `billhook pack` wrote, which is read as it is; or a quantized checkpoint,
            each layer of which is packed on the way.
        device: Where the model shall be.
        dtype: Type of the activations, float16 or bfloat16; by default what the folder was packed for, or
            the config's.
        narrow_activations: Whether layers quantize their inputs to e4m3 or int8 where the checkpoint says so:
            with its static scales, else one for each token. Where no kernel takes them beside the weights
            they stay in 16 bits, and a warning says why. By default all stay, which is more exact. "folded":
            besides, 4-bit weights in groups beside e4m3 inputs become w4a8, for 9.0a: faster and less exact.
            A folder packed so needs no telling.

    Returns:
        The model (`transformers.PreTrainedModel`) in evaluation mode.

    Raises:
        InputError: Another word for `narrow_activations`.
        ConfigError: A config that cannot be read or makes no sense, or a folder not packed to the end.
        WeightError: A tensor is missing, extra, damaged or does not fit.
        UnsupportedError: A format or an architecture that is not built, or scales that cannot be folded.
        ToolchainError: transformers is not installed.
    """
    folder, place = Path(model_dir), torch.device(device)
    narrow, fold = read_narrow(narrow_activations)
    config = _read_config(folder)
    # Without it, transformers does not take the model for one that it quantizes itself.
    section = config.__dict__.pop("quantization_config", None) or {}
    if section.get("quant_method") == PACKED_METHOD:
        source = open_packed_source(folder, place, dtype)
        if fold:
            check_folded(folder / CONFIG, PACKED_METHOD, (one.stored for one in source.modules.values()))
    else:
        source = open_source(folder, place, dtype or config.dtype, fold=fold)
    model = _build(config, source.dtype)
    placer = Placer(model, place, source.dtype, narrow)
    placer.fill_buffers()
    for name in source.modules:
        placer.place_module(name, source)
    for name in source.plain:
        placer.place_tensor(name, source)
    placer.finish(folder)
    for why, count in placer.kept_wide.items():
        warnings.warn(f"activations of {count} GEMMs stay in 16 bits: {why}", stacklevel=2)
    _read_generation_config(model, folder)
    return model.eval()


def _read_config(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ToolchainError(
            "billhook.load builds models with transformers, which is not installed: "
            "pip install 'billhook[transformers]'"
        ) from error
    refuse_unfinished(folder)
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: transformers cannot read it: {error}") from error


def _build(config: Any, dtype: torch.dtype) -> Any:
    """Return the model without memory."""
    import transformers

    try:
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise UnsupportedError(
            f"transformers builds no language model of type {config.model_type!r}: {error}"
        ) from error


def _read_generation_config(model: Any, folder: Path) -> None:
    import transformers

    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
