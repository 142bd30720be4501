"""Read a checkpoint folder: its config, and which tensors its safetensors files hold."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, WeightError
from ..models import Fields, read_object
from .header import Tensor, read_header

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MANIFEST = "billhook-pack.json"  # a packed folder's state; CONFIG is written last
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint folder.

    Args:
        folder: The folder.
        config: Its config.json.
        files: The safetensors files read.
        tensors: Every tensor, by name.
        notes: What was left out, in words.
    """

    folder: Path
    config: Fields
    files: tuple[Path, ...]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's config and headers; no tensor's data.

    Args:
        folder: Holds config.json and safetensors files; if there is a `model.safetensors.index.json`, what it
            names is read, else `model.safetensors`, else every `*.safetensors`.

    Raises:
        ConfigError: config.json or the index cannot be read or makes no sense, or a file is missing.
        WeightError: A safetensors file is damaged, or a tensor is missing, extra, or in two files.
    """
    refuse_unfinished(folder)
    config = read_object(folder / CONFIG)
    there = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if index.exists():
        weight_map = _read_index(index)
        files = sorted(folder / name for name in set(weight_map.values()))
        _check_present(files, index)
    else:
        weight_map = {}
        files = [file for file in there if file.name == _SINGLE] or there
        _check_shards(folder, files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for tensor in read_header(file):
            if weight_map:
                _check_indexed(index, weight_map, tensor)
            elif tensor.name in tensors:
                raise WeightError(f"tensor {tensor.name!r} is in {tensors[tensor.name].file} and in {file}")
            tensors[tensor.name] = tensor
    _check_complete(index, weight_map, tensors)
    ignored = [file.name for file in there if file not in files]
    notes = (f"not read, since {INDEX if weight_map else _SINGLE} is there: {', '.join(ignored)}",)
    return Checkpoint(folder, config, tuple(files), tensors, notes if ignored else ())


def refuse_unfinished(folder: Path) -> None:
    """Refuse what is no folder with a config; says so if `billhook pack` did not come to its end there.

    Raises:
        ConfigError: As said.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give a checkpoint's folder, with {CONFIG} in it")
    if (folder / CONFIG).exists():
        return
    if (folder / MANIFEST).exists():
        raise ConfigError(f"{folder} was not packed to the end; run `billhook pack` again to go on")
    raise ConfigError(f"{folder} has no {CONFIG}; give a checkpoint's folder")


def _read_index(file: Path) -> dict[str, str]:
    """Return the file name of each tensor."""
    weight_map = read_object(file).table("weight_map")
    if not weight_map.data:
        raise ConfigError(f"{file}: field weight_map must name the file of each tensor; it names none")
    names = {tensor: weight_map.text(tensor) for tensor in weight_map.data}
    for tensor, name in names.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{file}: tensor {tensor!r} is in {name!r}, which is not a safetensors file of this folder"
            )
    return names


def _check_present(files: Iterable[Path], index: Path) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(
            f"{index} names {', '.join(missing)}, which the folder lacks; fetch the whole checkpoint"
        )


def _check_shards(folder: Path, files: list[Path]) -> None:
    """Refuse a folder that lacks some of the files which the names of the others count."""
    if not files:
        raise ConfigError(f"{folder} has no *.safetensors file; other formats are not read")
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        if shard is None:
            continue
        for number in range(1, int(shard["total"]) + 1):
            width = len(shard["number"])
            name = f"{shard['stem']}-{number:0{width}}-of-{shard['total']}.safetensors"
            if folder / name not in files:
                raise ConfigError(f"{folder} has {file.name}, but lacks {name}; fetch the whole checkpoint")


def _check_indexed(index: Path, weight_map: dict[str, str], tensor: Tensor) -> None:
    named = weight_map.get(tensor.name)
    if named != tensor.file.name:
        where = "does not name it" if named is None else f"says that it is in {named}"
        raise WeightError(f"{tensor.file}: tensor {tensor.name!r} is here, but {index.name} {where}")


def _check_complete(index: Path, weight_map: dict[str, str], tensors: dict[str, Tensor]) -> None:
    for name, file in weight_map.items():
        if name not in tensors:
            raise WeightError(
                f"{index.parent / file}: tensor {name!r} is missing; {index.name} says it is here"
            )
