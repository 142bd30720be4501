import sys
from types import SimpleNamespace

import pytest

from billhook.errors import CudaError, UnsupportedError
from billhook.measure.contestant import Refusal, attempt


@pytest.fixture
def _synced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(synchronize=lambda: None)))


def fail(error: Exception) -> int:
    raise error


@pytest.mark.usefixtures("_synced")
def test_a_refusal_becomes_its_reason() -> None:
    assert attempt("x", lambda: 3) == 3
    assert attempt("x", lambda: fail(UnsupportedError("dense layers only"))) == Refusal("dense layers only")
    assert attempt("x", lambda: fail(RuntimeError("bad shape\nstack"))) == Refusal("refused: bad shape")
    assert attempt("x", lambda: fail(AssertionError())) == Refusal("refused: AssertionError")


@pytest.mark.usefixtures("_synced")
def test_interrupts_are_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt("x", lambda: fail(KeyboardInterrupt()))  # type: ignore[arg-type]


def test_a_lost_gpu_ends_the_run_and_names_the_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(synchronize=lambda: fail(RuntimeError("illegal memory access")))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with pytest.raises(CudaError, match="machete left the GPU in an error state"):
        attempt("machete", lambda: 3)
