"""vLLM source trees: their releases as data, and the kernel sources that they build."""

from __future__ import annotations

from .documented import generate_new_kernels, remove_old_kernels

__all__ = ["generate_new_kernels", "remove_old_kernels"]
