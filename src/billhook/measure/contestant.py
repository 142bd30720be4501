"""What can be measured: something that packs a layer's weights its own way and multiplies with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import BillhookError, CudaError
from .inputs import Inputs, Weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Launch:
    """One way to compute one problem.

    Args:
        call: Enqueues the product with one copy of the weights on the current stream; returns the output.
        kernel: The kernel's name, where it is known.
        check: Returns the error of an output, for what does not compute the product; else None.
    """

    call: Callable[[int], torch.Tensor]
    kernel: str = ""
    check: Callable[[torch.Tensor], float] | None = None


Bind = Callable[[Inputs], Launch]


class Contestant(Protocol):
    """A library, or a kernel, to be measured."""

    @property
    def name(self) -> str:
        """The name in records."""

    def version(self) -> str:
        """Return its version; "" if it tells none.

        Raises:
            UnsupportedError: It is not installed; the message says how to provide it.
        """

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Pack the weights, as many copies as any case needs.

        Returns:
            What binds the packed weights to one case.

        Raises:
            UnsupportedError: It does not serve this layer; the message says why.
        """


@dataclass(frozen=True)
class Refusal:
    """Why a contestant did not run.

    Args:
        reason: In words, one line.
    """

    reason: str


# What a foreign library raises when it refuses a shape or lacks a symbol: not ours to choose.
_FOREIGN = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    SubprocessError,
)

T = TypeVar("T")


def attempt(name: str, action: Callable[[], T]) -> T | Refusal:
    """Run a contestant's code; a failure becomes the reason why it does not take part.

    Raises:
        CudaError: It left the GPU in an error state, so that nothing after it can be trusted.
    """
    import torch

    try:
        done = action()
        torch.cuda.synchronize()
    except BillhookError as error:
        return Refusal(one_line(error))
    except _FOREIGN as error:
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise CudaError(
                f"{name} left the GPU in an error state: {one_line(error)}; leave it out"
            ) from lost
        return Refusal(f"refused: {one_line(error)}")
    return done


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
