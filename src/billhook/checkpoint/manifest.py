"""What a packed folder was made of and which of its files are done, so that packing can be resumed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..errors import ConfigError
from .folder import MANIFEST
from .source import Source
from .write import write_durable

LAYOUT = 2  # of the folder; weights have format numbers of their own
_SAMPLES = 64
_SAMPLE = 4096


@dataclass(frozen=True)
class Request:
    """What was asked.

    Args:
        layout: `LAYOUT`.
        activations: Type of the activations.
        config: sha256 of the checkpoint's config.json.
        files: Fingerprint of each of its safetensors files, by name.
        fold: Whether scales of groups are folded into weights.
    """

    layout: int
    activations: str
    config: str
    files: dict[str, str]
    fold: bool = False


@dataclass(frozen=True)
class Manifest:
    """A packed folder's state.

    Args:
        request: What was asked.
        done: Checksum of each safetensors file that is whole, by name.
    """

    request: Request
    done: dict[str, str] = field(default_factory=dict)


def make_request(source: Source, activations: str, *, fold: bool) -> Request:
    """Return what packing a checkpoint asks for.

    Raises:
        OSError: A file cannot be read.
    """
    files = {file.name: _fingerprint(file) for file in source.checkpoint.files}
    config = hashlib.sha256(source.checkpoint.config.file.read_bytes()).hexdigest()
    return Request(LAYOUT, activations, config, files, fold)


def read_manifest(folder: Path) -> Manifest | None:
    """Return a folder's manifest; None if it has none.

    Raises:
        ConfigError: It is damaged.
    """
    file = folder / MANIFEST
    try:
        return msgspec.json.decode(file.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is damaged ({error}); remove {folder} and pack again") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a folder's manifest.

    Raises:
        OSError: As the system says.
    """
    write_durable(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def check_same(folder: Path, had: Request, asked: Request) -> None:
    """Refuse to mix two packs in a folder.

    Raises:
        ConfigError: The folder was made of something else; says what differs.
    """
    if had == asked:
        return
    if had.activations != asked.activations:
        what = f"for {had.activations} activations, not {asked.activations}"
    elif had.fold != asked.fold:
        what = "with scales folded" if had.fold else "without folding scales"
    elif had.layout != asked.layout:
        what = f"in layout {had.layout}, not {asked.layout}"
    else:
        what = "from another checkpoint"
    raise ConfigError(f"{folder} was packed {what}; remove it, or give another folder")


def _fingerprint(file: Path) -> str:
    """Return a hash of a file's size, its header and samples of its data, which tell finetunes apart."""
    found = hashlib.sha256()
    size = file.stat().st_size
    found.update(size.to_bytes(8, "little"))
    with file.open("rb") as stream:
        length = stream.read(8)
        found.update(length + stream.read(int.from_bytes(length, "little")))
        for sample in range(_SAMPLES):
            stream.seek(size * sample // _SAMPLES)
            found.update(stream.read(_SAMPLE))
    return found.hexdigest()
