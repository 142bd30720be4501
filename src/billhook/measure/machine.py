"""What a record must say about where it was made."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ToolchainError, UnsupportedError
from .contestant import Contestant
from .record import Machine

if TYPE_CHECKING:
    import torch

COMMIT_VARIABLE = "BILLHOOK_COMMIT"


def find_gpu() -> torch.device:
    """Return the GPU to measure on: torch's current one.

    Raises:
        ToolchainError: torch or a GPU is missing; the message says what to do.
    """
    try:
        import torch
    except ImportError as error:
        raise ToolchainError(
            "measuring needs torch and an NVIDIA GPU: pip install 'billhook[cuda,torch]'"
        ) from error
    if not torch.cuda.is_available():
        raise ToolchainError(
            "measuring needs an NVIDIA GPU and its driver, and torch sees none; run it on a machine with one "
            "(`billhook doctor` says what is missing; --report and --tune need no GPU)"
        )
    return torch.device("cuda", torch.cuda.current_device())


def describe(device: torch.device, contestants: Sequence[Contestant]) -> Machine:
    """Return what is known of this machine and of the contestants found on it."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return Machine(
        gpu=torch.cuda.get_device_name(device),
        sms=properties.multi_processor_count,
        l2_bytes=properties.L2_cache_size,
        driver=driver_version(),
        cuda=str(torch.version.cuda),
        torch=str(torch.__version__),
        commit=find_commit(),
        command=shlex.join(["billhook", *sys.argv[1:]]),
        peers=dict(
            found for contestant in contestants if (found := (contestant.name, _version(contestant)))[1]
        ),
    )


def _version(contestant: Contestant) -> str:
    try:
        return contestant.version()
    except UnsupportedError:
        return ""  # absent: its records say why


def append_lines(file: Path, found: Sequence[Mapping[str, Any]], script: str, device: torch.device) -> None:
    """Append what a benchmark script found to a file of JSON lines, each with where it was made.

    Args:
        file: The file; it is made if it does not exist.
        found: One result for each line.
        script: The script, such as "bench/pack.py".
        device: What it measured.
    """
    import torch

    where = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "torch": torch.__version__,
        "commit": find_commit(),
        "command": shlex.join(["python", script, *sys.argv[1:]]),
    }
    with file.open("a") as stream:
        stream.writelines(json.dumps({**where, **one}) + "\n" for one in found)


def find_commit() -> str:
    """Return Billhook's commit: from the checkout this runs in, else from `BILLHOOK_COMMIT`, else ""."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT_VARIABLE, "")
    return done.stdout.strip()


def driver_version() -> str:
    """Return the NVIDIA driver's version; "" without the package nvidia-ml-py."""
    nvml = _nvml()
    if nvml is None:
        return ""
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return ""


def sm_clock_mhz(device: torch.device) -> int:
    """Return the clock of the multiprocessors now; 0 without the package nvidia-ml-py."""
    nvml = _nvml()
    if nvml is None:
        return 0
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        return int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    except nvml.NVMLError:
        return 0


def _nvml() -> Any:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml
