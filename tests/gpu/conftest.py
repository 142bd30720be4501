"""GPU tests are skipped, with the reason, where there is no GPU or no torch."""

from __future__ import annotations

from pathlib import Path

import pytest


def _lacking() -> str | None:
    """Return why GPU tests cannot run here; None if they can."""
    try:
        import torch
    except ImportError:
        return "needs torch, which is not installed"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU that torch can use"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    reason = _lacking() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
