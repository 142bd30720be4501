"""Turn planned kernels into source text. Templates hold instances; algorithms live in `cuda/billhook`."""

from __future__ import annotations

from .native import emit, emit_support, support_name
from .source import SourceFile

__all__ = ["SourceFile", "emit", "emit_support", "support_name"]
