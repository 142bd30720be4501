"""Write a checkpoint with its quantized weights packed: `billhook pack`.

Each file is whole or not there, and config.json comes last: a folder that has one was packed to the end.
Memory holds one layer for each job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..dtypes import DType
from ..errors import ConfigError, StorageError, UnsupportedError
from ..formats import host
from ..formats.elements import numpy_dtype
from ..models import MODELOPT_FILE, activations_type, read_dtype
from .fill import Contents, Pack, Report, fill, group_files, list_files, plan_tensors
from .folder import CONFIG, INDEX, MANIFEST
from .manifest import Manifest, Request, check_same, make_request, read_manifest, write_manifest
from .packed import write_section
from .source import Source, open_checkpoint
from .write import checksum, open_shard, write_durable

# Weights in other containers, and what other tools say of how weights are stored: not copied.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
_REPLACED = {CONFIG, INDEX, MODELOPT_FILE, MANIFEST, "quantize_config.json", "quant_config.json"}


@dataclass(frozen=True)
class Packed:
    """What packing did.

    Args:
        modules: GEMMs that are packed.
        written: Files of tensors written.
        kept: Files of tensors that an earlier run had finished.
        before: Bytes of the checkpoint's tensors.
        after: Bytes of the packed folder's tensors.
        notes: What was left out or stays apart, in words.
    """

    modules: int
    written: int
    kept: int
    before: int
    after: int
    notes: tuple[str, ...]


def pack_checkpoint(
    folder: Path,
    out: Path,
    activations: DType | None = None,
    *,
    fold: bool = False,
    pack: Pack = host.pack,
    jobs: int = 1,
    progress: Callable[[int], Report] | None = None,
) -> Packed:
    """Pack a checkpoint into a folder, or go on where an earlier run was stopped.

    Args:
        folder: The checkpoint.
        out: Where to write; new or empty, or begun by the same request.
        activations: f16 or bf16; what the config says if None.
        fold: Whether to fold scales of groups into weights (w4a8) where the config asks for e4m3 activations.
        pack: Packs one weight.
        jobs: Layers that are packed at a time.
        progress: Called with the bytes to be read; what it returns is called with those dealt with.

    Raises:
        ConfigError: A config that makes no sense, or `out` holds something else.
        WeightError: A tensor is missing, extra, damaged or does not fit.
        UnsupportedError: A format that is not built, or that the activations are not multiplied by, or scales
            that cannot be folded.
        StorageError: `out` cannot be written.
    """
    source = open_checkpoint(folder, fold=fold)
    act = _find_activations(source, activations)
    files = group_files(source)
    report = progress(sum(contents.bytes for contents in files.values())) if progress else _ignore
    written = 0
    try:
        manifest = _begin(source, out, make_request(source, str(act), fold=fold))
        for name, contents in files.items():
            if _is_done(out / name, manifest):
                report(contents.bytes)
                continue
            with open_shard(out / name, plan_tensors(contents, act)) as shard:
                fill(shard, source, contents, act, pack=pack, jobs=jobs, report=report)
            manifest.done[name] = checksum(out / name)
            write_manifest(out, manifest)
            written += 1
        after = _finish(source, out, act, files)
    except OSError as error:
        raise StorageError(f"cannot write {error.filename or out}: {error.strerror}") from error
    before = sum(tensor.bytes for tensor in source.checkpoint.tensors.values())
    return Packed(len(source.modules), written, len(files) - written, before, after, source.notes)


def _ignore(done: int) -> None:
    """Report to nobody."""


def _find_activations(source: Source, activations: DType | None) -> DType:
    config = source.checkpoint.config
    act = activations or activations_type(config.file, read_dtype(config))
    for fused in source.modules.values():
        allowed = fused.held.outputs
        if act not in allowed:
            raise UnsupportedError(
                f"{fused.name}: {fused.format} weights are multiplied by {' or '.join(map(str, allowed))} "
                f"activations (got {act}); pack with --act {allowed[0]}"
            )
    return act


def _begin(source: Source, out: Path, request: Request) -> Manifest:
    """Return the manifest of the folder, made if it is new.

    Raises:
        ConfigError: It holds something else.
        OSError: It cannot be read or written.
    """
    if out.resolve() == source.checkpoint.folder.resolve():
        raise ConfigError(f"{out} is the checkpoint itself; give another folder to write to")
    out.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(out)
    if manifest is None:
        if any(not other.name.startswith(f".{MANIFEST}") for other in out.iterdir()):
            raise ConfigError(f"{out} is not empty and no packed folder; give a new one")
        manifest = Manifest(request)
        write_manifest(out, manifest)
    check_same(out, manifest.request, request)
    return manifest


def _is_done(file: Path, manifest: Manifest) -> bool:
    """Return whether a file is there as an earlier run finished it, by its content."""
    return file.name in manifest.done and file.is_file() and checksum(file) == manifest.done[file.name]


def _finish(source: Source, out: Path, act: DType, files: Mapping[str, Contents]) -> int:
    """Write what is not tensors, config.json last; return the bytes of all tensors."""
    folder = source.checkpoint.folder
    for other in sorted(folder.iterdir()):
        if other.is_file() and other.suffix not in _WEIGHTS and other.name not in _REPLACED:
            write_durable(out / other.name, other.read_bytes())
    places, size = list_files(files, act)
    write_durable(out / INDEX, _encode({"metadata": {"total_size": size}, "weight_map": places}))
    config = dict(source.checkpoint.config.data)
    said = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    config |= dict.fromkeys(said, numpy_dtype(act).name)  # for planners: what it was packed for
    config["quantization_config"] = write_section(source.modules, act, source.declared.fields.data)
    write_durable(out / CONFIG, _encode(config))
    return size


def _encode(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
