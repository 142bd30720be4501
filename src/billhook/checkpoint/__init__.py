"""A checkpoint folder: its linear layers as stored, the kernels that serve them, their weights packed.

What headers alone tell needs no numpy; what reads data is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .declared import Declared, read_declared
from .folder import Checkpoint, read_checkpoint, refuse_unfinished
from .header import Tensor, read_header
from .modules import Linear, Row, count_inputs, fold, read_linears
from .serve import Answer, Serving, Use, check_sizes, list_gemms, read_model, serve
from .stored import UNQUANTIZED, Stored

if TYPE_CHECKING:
    from .fuse import Fused
    from .pack import Packed, pack_checkpoint
    from .packed import PackedFolder, PackedModule, list_linears, open_packed
    from .read import Weight
    from .source import Source, open_checkpoint

__all__ = [
    "UNQUANTIZED",
    "Answer",
    "Checkpoint",
    "Declared",
    "Fused",
    "Linear",
    "Packed",
    "PackedFolder",
    "PackedModule",
    "Row",
    "Serving",
    "Source",
    "Stored",
    "Tensor",
    "Use",
    "Weight",
    "check_sizes",
    "count_inputs",
    "fold",
    "list_gemms",
    "list_linears",
    "open_checkpoint",
    "open_packed",
    "pack_checkpoint",
    "read_checkpoint",
    "read_declared",
    "read_header",
    "read_linears",
    "read_model",
    "refuse_unfinished",
    "serve",
]

_ELSEWHERE = {
    "Fused": "fuse",
    "PackedFolder": "packed",
    "PackedModule": "packed",
    "Packed": "pack",
    "Source": "source",
    "Weight": "read",
    "list_linears": "packed",
    "open_checkpoint": "source",
    "open_packed": "packed",
    "pack_checkpoint": "pack",
}


def __getattr__(name: str) -> Any:
    """Import what reads data, and numpy with it, when it is first asked for."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_ELSEWHERE[name]}", __name__), name)
    return value
