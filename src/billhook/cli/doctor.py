"""`billhook doctor`: what was found on this machine, and what is missing for which command."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

import click

from ..errors import BillhookError
from .columns import fold


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    Args:
        name: What was looked for.
        found: Whether it is there and works.
        detail: Version and place, or why it does not work.
        remedy: What to do if it is not there.
    """

    name: str
    found: bool
    detail: str
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(*, as_json: bool) -> None:
    """Show what was found on this machine, and what is missing for what.

    Exit code 0 even if something is missing: many commands need neither GPU nor torch.
    """
    findings = [look() for look in _LOOKS]
    missing = {name: _missing(needs, findings) for name, needs in _NEEDS.items()}
    if as_json:
        import msgspec

        report = {
            "findings": [asdict(finding) for finding in findings],
            "commands": {name: {"ready": not lacks, "missing": lacks} for name, lacks in missing.items()},
        }
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    click.echo("\n".join(fold(_show(findings, missing))))


def _show(findings: Sequence[Finding], missing: Mapping[str, Sequence[str]]) -> Iterator[str]:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.found else "--"
        yield f"{mark}  {finding.name:{width}}  {finding.detail}"
        if finding.remedy and not finding.found:
            yield f"    {'':{width}}  {finding.remedy}"
    yield ""
    width = max(map(len, missing))
    for name, lacks in missing.items():
        words = "ready" if not lacks else f"needs {', '.join(lacks)}"
        yield f"billhook {name:{width}}  {words}"


def _missing(needs: Iterable[str], findings: Iterable[Finding]) -> list[str]:
    found = {finding.name for finding in findings if finding.found}
    return [need for need in needs if need not in found]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    from .. import __version__

    return Finding("Python", True, f"{platform.python_version()}, Billhook {__version__}")


def _nvrtc() -> Finding:
    from ..build.toolchain import INSTALL, find_nvrtc

    try:
        nvrtc = find_nvrtc()
    except BillhookError as error:
        return Finding("NVRTC", False, str(error), f"run: {INSTALL}")
    return Finding("NVRTC", True, f"{nvrtc.version} {nvrtc.path}")


def _cache() -> Finding:
    from ..build import Cache, cache_folder
    from ..build.files import nearest_existing

    folder = cache_folder()
    try:
        entries, size = Cache(folder).measure()
    except BillhookError as error:
        return Finding("kernel cache", False, str(error), "set BILLHOOK_CACHE_DIR to a folder of yours")
    place = nearest_existing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding(
            "kernel cache",
            False,
            f"{place} cannot be written to",
            "mend its permissions, or set BILLHOOK_CACHE_DIR to a folder of yours",
        )
    return Finding("kernel cache", True, f"{folder}, {entries} kernels, {size / 2**20:.1f} MiB")


def _nvcc() -> Finding:
    from ..build.toolchain import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        return Finding(
            "CUDA toolkit", False, "nvcc was not found", "not needed: kernels are compiled by NVRTC"
        )
    return Finding("CUDA toolkit", True, f"nvcc {nvcc.version} {nvcc.path}")


def _driver() -> Finding:
    from ..driver import version

    found = version()
    if found is None:
        return Finding("NVIDIA driver", False, "none, or cuda-bindings is not installed", _GPU_REMEDY)
    new_enough = int(found.partition(".")[0]) >= _CUDA
    return Finding("NVIDIA driver", new_enough, f"for CUDA {found}", _DRIVER_REMEDY)


def _gpu() -> Finding:
    from ..driver import gpus

    found = gpus()
    if not found:
        return Finding("GPU", False, "none", _GPU_REMEDY)
    return Finding("GPU", True, "; ".join(f"{gpu.name} ({gpu.arch}, {gpu.sms} SMs)" for gpu in found))


_CUDA = 13  # major version of the NVRTC that `billhook[cuda]` installs: older drivers refuse its machine code
_DRIVER_REMEDY = f"kernels are machine code of CUDA {_CUDA}: install a driver of 580 or later"
_GPU_REMEDY = "run this command on a machine with an NVIDIA GPU of compute capability 7.5 or later"


def _torch() -> Finding:
    remedy = "run: pip install 'billhook[torch]'"
    if _version("torch") is None:
        return Finding("torch", False, "not installed", remedy)
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", False, f"cannot be imported: {error}", remedy)
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return Finding("torch", True, f"{torch.__version__}, {cuda}")


def _peers() -> Finding:
    folder = os.environ.get("BILLHOOK_PEER_VLLM")
    vllm = f"vLLM {folder}" if folder else f"vLLM {_version('vllm') or 'not installed'}"
    humming = f"Humming {_version('humming-kernels') or 'not installed'}"
    found = any((folder, _version("vllm"), _version("humming-kernels")))
    return Finding(
        "peers", found, f"{vllm}; {humming}", "optional: `billhook bench` compares with those that are there"
    )


_LOOKS: tuple[Callable[[], Finding], ...] = (
    _python, _nvrtc, _cache, _nvcc, _driver, _gpu, _torch, _peers,
)  # fmt: skip

_NEEDS = {
    "inspect": (),
    "plan": (),
    "explain": (),
    "build": ("NVRTC", "kernel cache"),
    "emit": (),
    "pack": (),
    "verify": ("NVIDIA driver", "GPU", "torch"),
    "bench": ("NVRTC", "kernel cache", "NVIDIA driver", "GPU", "torch"),
    "generate": (),
    "vllm": (),
    "lint": (),
}
