"""What `manifest.json` says of a bundle; docs/bundle.md describes it for readers outside Python."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ..errors import BundleError
from ..plan import Plan
from .resources import Resources

FORMAT = 2  # raised when a reader of the old one would go wrong, so also when kernels take other arguments


@dataclass(frozen=True)
class Input:
    """A file that the bundle was made from.

    Args:
        name: The file's name with its folder's, such as `llama-3.1-8b-gptq-int4/config.json`.
        sha256: Hash of its content, hexadecimal.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class BundledKernel:
    """One compiled source of a bundle. Why a GEMM kernel is there stands in `plan.kernels`.

    Args:
        name: `KernelConfig.name`, or the support module's name.
        kind: "gemm" (one kernel called `name`) or "support" (kernels beside GEMMs).
        arch: The GPU target, such as `9.0a`.
        cubin: The machine code's path in the bundle.
        ptx: The PTX's path in the bundle; "" unless the target asked for it.
        source: The source's path in the bundle.
        key: Hash over everything that entered the compilation.
        entries: Kernel symbol -> resources.
        threads: Threads of one CTA; 0 where each launch decides.
        dynamic_shared: Dynamic shared memory of one CTA, bytes.
        compile_seconds: Wall time of the compilation, whenever that was.
        warnings: What the compiler warned of.
    """

    name: str
    kind: str
    arch: str
    cubin: str
    ptx: str
    source: str
    key: str
    entries: dict[str, Resources]
    threads: int
    dynamic_shared: int
    compile_seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        format: Version of this structure.
        billhook: Version of Billhook that wrote it.
        compiler: The compiler's name and full version.
        inputs: The files that the plan was made from.
        options: The request's options, as text.
        plan: Layers, kernels and why, dispatch.
        kernels: What was compiled, in the plan's order.
        files: Path in the bundle -> SHA-256, hexadecimal, of every file but the manifest and its hash.
    """

    format: int
    billhook: str
    compiler: str
    inputs: tuple[Input, ...]
    options: dict[str, str]
    plan: Plan
    kernels: tuple[BundledKernel, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class _Version:
    format: int
    billhook: str


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest back.

    Args:
        content: The file's bytes.
        where: The file, for messages.

    Raises:
        BundleError: Not a manifest, or one of another format.
    """
    try:
        version = msgspec.json.decode(content, type=_Version)
        if version.format != FORMAT:
            raise BundleError(
                f"{where}: bundle format {version.format}, written by Billhook {version.billhook}; "
                f"this version reads format {FORMAT}: delete the bundle and build it again"
            )
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{where} is not the manifest of a Billhook bundle: {error}") from error
