"""Turn planned kernels into source text. Templates hold instances; algorithms live in `cuda/billhook`."""

from __future__ import annotations

from .native import SUPPORT, emit, emit_support, support_name
from .source import SourceFile

__all__ = ["SUPPORT", "SourceFile", "emit", "emit_support", "support_name"]
