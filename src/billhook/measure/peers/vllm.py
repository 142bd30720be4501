"""The compiled libraries of vLLM, whose operators are peers; vLLM itself is never imported.

The libraries are `_C.abi3.so` and `_moe_C.abi3.so` of a vLLM wheel: in the folder that
`BILLHOOK_PEER_VLLM` names, or of an installed vLLM. Written for vLLM 0.20.2; another
release's operators may refuse the arguments, and then say so. Its CUTLASS product of int4
weights and float8 activations is in a library beside them, which is not loaded.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from functools import cache
from pathlib import Path

from ...dtypes import E2M1F, E4M3FN, U4, U4B8, U8, U8B128, DType
from ...errors import UnsupportedError

FOLDER_VARIABLE = "BILLHOOK_PEER_VLLM"


def scalar_type(exponent: int, mantissa: int, *, signed: bool = False, bias: int = 0, nan: int = 1) -> int:
    """Return vLLM's 64-bit name of a scalar type.

    Args:
        exponent: Exponent bits; 0 for integers.
        mantissa: Mantissa bits; all bits of integers but the sign.
        signed: Whether there is a sign.
        bias: What is subtracted from the stored code.
        nan: How NaN is told: 0 not at all, 1 as IEEE does (and integers), 2 by the largest code. Unless as
            IEEE does, there are no infinities.
    """
    finite = nan != 1
    return exponent | mantissa << 8 | signed << 16 | bias << 17 | finite << 49 | nan << 50


SCALAR_TYPES: dict[DType, int] = {
    U4: scalar_type(0, 4),
    U4B8: scalar_type(0, 4, bias=8),
    U8: scalar_type(0, 8),
    U8B128: scalar_type(0, 8, bias=128),
    E4M3FN: scalar_type(4, 3, signed=True, nan=2),
    E2M1F: scalar_type(2, 1, signed=True, nan=0),
}


def find_folder() -> Path:
    """Return the folder of vLLM's libraries.

    Raises:
        UnsupportedError: There is none.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named)
        if not (folder / "_C.abi3.so").is_file():
            raise UnsupportedError(f"not installed: {FOLDER_VARIABLE}={named} holds no _C.abi3.so")
        return folder
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            f"not installed: set {FOLDER_VARIABLE} to a folder with a vLLM wheel's _C.abi3.so"
        )
    return Path(spec.origin).parent


@cache
def load(name: str) -> None:
    """Load one of the libraries into torch, once.

    Raises:
        UnsupportedError: It is missing or does not fit this torch.
    """
    import torch

    path = find_folder() / name
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise UnsupportedError(f"not installed: {path} cannot be loaded ({error})") from error


def read_version() -> str:
    """Return the release of the libraries found: of the package, or what a file `VERSION` beside them says.

    Raises:
        UnsupportedError: They are not there.
    """
    folder = find_folder()
    if not os.environ.get(FOLDER_VARIABLE):
        return importlib.metadata.version("vllm")
    note = folder / "VERSION"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""
