"""What `import billhook` gives, with and without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import billhook

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import billhook
from billhook.errors import ToolchainError
try:
    billhook.{name}
except ToolchainError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["gemm", "nn", "load"])
def test_what_needs_torch_says_so(name: str) -> None:
    code = WITHOUT_TORCH.format(name=name)
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f"billhook.{name} needs torch" in found
    assert "pip install" in found


def test_nothing_is_listed_that_needs_torch_where_it_is_not() -> None:
    code = (
        'import sys, pydoc; sys.modules["torch"] = None; import billhook; print(pydoc.render_doc(billhook))'
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "mixed-precision GEMM" in found
    assert "machete_mm" not in found.partition("DATA")[0]


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        billhook.no_such  # noqa: B018


def test_every_public_name_is_found() -> None:
    pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
    assert set(billhook.__all__) <= set(dir(billhook))
    for name in billhook.__all__:
        assert getattr(billhook, name) is not None
