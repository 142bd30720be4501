"""Bundles: folders that hold compiled kernels, their sources, and the rules that choose among them.

    manifest.json           what, why, from which inputs, and the hash of every file below
    manifest.json.sha256    the manifest's own hash, as `sha256sum` writes it
    cubins/NAME.cubin       machine code
    ptx/NAME.ptx            for targets that ask for PTX (`9.0+PTX`)
    sources/NAME.cu         what it was compiled from
    include/billhook/...    the headers that the sources include

Reading one needs no torch, no GPU and no CUDA.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .. import __version__
from ..errors import BundleError, CompileError, StorageError
from ..plan import Plan
from .artifact import Artifact
from .files import nearest_existing
from .folder import fill_folder
from .manifest import FORMAT, BundledKernel, Input, Manifest, decode_manifest, encode_manifest

MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.json.sha256"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found whole.

    Args:
        folder: Where it lies.
        manifest: What its `manifest.json` says.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path) -> Bundle:
        """Open a bundle and check it: format, every file's hash, and that dispatch names kernels it holds.

        Raises:
            BundleError: It is missing, not a bundle, damaged or incomplete; the message names the file.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for path, digest in manifest.files.items():
            _read(folder, path, digest)
        where = folder / MANIFEST
        for kernel in manifest.kernels:
            for path in filter(None, (kernel.cubin, kernel.ptx, kernel.source)):
                if path not in manifest.files:
                    raise BundleError(f"{where}: kernel {kernel.name} names {path!r}, which has no hash")
        held = {kernel.name for kernel in manifest.kernels}
        for entry in manifest.plan.dispatch:
            for span in entry.ranges:
                if span.kernel not in held:
                    raise BundleError(f"{where}: dispatch names {span.kernel}, which is not in the bundle")
        return cls(folder, manifest)

    @property
    def plan(self) -> Plan:
        """Layers, kernels and why, dispatch."""
        return self.manifest.plan

    def kernel(self, name: str) -> BundledKernel:
        """Return the kernel or support module called `name`.

        Raises:
            BundleError: The bundle does not hold it.
        """
        for kernel in self.manifest.kernels:
            if kernel.name == name:
                return kernel
        raise BundleError(
            f"{self.folder} holds no kernel {name!r}, only those that rules chose for its models; "
            "billhook.use_bundle(None) compiles any on first use"
        )

    def cubin(self, name: str) -> bytes:
        """Return the machine code of `name`.

        Raises:
            BundleError: The bundle does not hold it, or it was damaged since the bundle was opened.
        """
        path = self.kernel(name).cubin
        return _read(self.folder, path, self.manifest.files[path])


def write_bundle(
    folder: str | Path,
    plan: Plan,
    artifacts: Sequence[Artifact],
    inputs: Iterable[Input] = (),
    options: Mapping[str, str] | None = None,
) -> Bundle:
    """Write a bundle, replacing an older bundle in one step.

    Args:
        folder: Where it goes; absent, empty, or an older bundle.
        plan: What was planned.
        artifacts: What was compiled: all that `plan` asks for.
        inputs: The files that the plan was made from.
        options: The request's options, for the reader.

    Raises:
        BundleError: `folder` holds something else.
        StorageError: It cannot be written; an older bundle is as it was.
    """
    target = check_target(folder)
    contents = dict(_contents(artifacts))
    manifest = Manifest(
        format=FORMAT,
        billhook=__version__,
        compiler=artifacts[0].compiler if artifacts else "",
        inputs=tuple(inputs),
        options=dict(options or {}),
        plan=plan,
        kernels=tuple(_bundled(artifact) for artifact in artifacts),
        files={path: _sha256(content) for path, content in sorted(contents.items())},
    )
    encoded = encode_manifest(manifest)
    contents[MANIFEST] = encoded
    contents[MANIFEST_HASH] = f"{_sha256(encoded)}  {MANIFEST}\n".encode()
    try:
        fill_folder(target, contents)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot write bundle {target}: {reason}; compiled kernels are in the cache, so mend this "
            "and run again, or choose another folder with --out"
        ) from error
    return Bundle(target, manifest)


def check_target(folder: str | Path) -> Path:
    """Return the folder that a bundle may be written to, links resolved.

    Raises:
        BundleError: It is a file, or a folder that holds anything but a bundle's own files.
        StorageError: It cannot be looked into, or nothing can be written beside it.
    """
    target = Path(folder).resolve()
    try:
        _check_place(target)
        _check_owner(target)
    except OSError as error:
        raise StorageError(f"cannot use {target}: {error.strerror}; choose another with --out") from error
    return target


def _check_place(target: Path) -> None:
    """Refuse what is not a folder, and where nothing can be put beside it to take its place."""
    place = nearest_existing(target)
    if not place.is_dir():
        raise BundleError(f"{place} is not a folder; choose another with --out")
    beside = nearest_existing(target.parent)
    if not os.access(beside, os.W_OK | os.X_OK):
        raise StorageError(
            f"cannot write to {beside}, where the bundle is put together; mend its permissions, "
            "or choose another folder with --out"
        )


def _check_owner(target: Path) -> None:
    """Refuse a folder that holds files of someone else."""
    if not target.exists() or not any(target.iterdir()):
        return
    remedy = "nothing was changed; empty the folder, or choose another with --out"
    try:
        manifest = _read_manifest(target)
    except BundleError as error:
        raise BundleError(
            f"{target} is not empty and no bundle of this version ({error}); {remedy}"
        ) from error
    own = {MANIFEST, MANIFEST_HASH, *manifest.files}
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if not path.is_dir() and name not in own:
            raise BundleError(f"{target} is a bundle, but holds a file of someone else: {name}; {remedy}")


def _contents(artifacts: Iterable[Artifact]) -> Iterable[tuple[str, bytes]]:
    headers: dict[str, str] = {}
    for artifact in artifacts:
        kernel = _bundled(artifact)
        yield kernel.cubin, artifact.cubin
        yield kernel.source, artifact.unit.source.text.encode()
        if kernel.ptx:
            yield kernel.ptx, artifact.ptx.encode()
        for name, text in artifact.headers.items():
            if headers.setdefault(name, text) != text:
                raise CompileError(f"header {name} was changed while kernels were compiled; build again")
    for name, text in headers.items():
        yield f"include/{name}", text.encode()


def _bundled(artifact: Artifact) -> BundledKernel:
    unit = artifact.unit
    return BundledKernel(
        name=unit.name,
        kind=unit.kind,
        arch=str(unit.arch),
        cubin=f"cubins/{unit.name}.cubin",
        ptx=f"ptx/{unit.name}.ptx" if artifact.ptx else "",
        source=f"sources/{unit.source.path}",
        key=artifact.key,
        entries=artifact.entries,
        threads=unit.threads,
        dynamic_shared=unit.dynamic_shared,
        compile_seconds=round(artifact.seconds, 3),
        warnings=tuple(artifact.warnings),
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"bundle {folder} does not exist; `billhook build ... --out {folder}` makes one")
    if not path.is_file():
        raise BundleError(f"{folder} is not a Billhook bundle: it has no {MANIFEST}")
    try:
        content = path.read_bytes()
        said = (folder / MANIFEST_HASH).read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        raise BundleError(
            f"bundle {folder} is incomplete: {MANIFEST_HASH} is missing; build it again"
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
    manifest = decode_manifest(content, str(path))
    if said[:1] != [_sha256(content)]:
        raise BundleError(
            f"{path} is damaged: its hash is not the one in {MANIFEST_HASH}; "
            "delete the bundle and build it again"
        )
    return manifest


def _read(folder: Path, path: str, digest: str) -> bytes:
    """Read one file of a bundle and check its hash."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"{folder / MANIFEST}: {path!r} leads out of the bundle")
    try:
        content = (folder / path).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"bundle {folder} is incomplete: {path} is missing; build it again") from None
    except OSError as error:
        raise BundleError(f"cannot read {folder / path}: {error.strerror}") from error
    if _sha256(content) != digest:
        raise BundleError(
            f"{folder / path} is damaged: its hash is not the manifest's; build the bundle again"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
