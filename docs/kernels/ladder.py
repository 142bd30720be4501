"""The steps of the ladder: how each is compiled and launched, and what it must compute. Needs no GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from billhook.arch import parse
from billhook.build.headers import included_headers
from billhook.build.nvrtc import Compiled, compile_text
from billhook.dtypes import U4B8
from billhook.errors import InputError
from billhook.formats.pack import pack_codes, pack_scales

FOLDER = Path(__file__).resolve().parent
TOKENS, DEPTH, GROUP = 128, 64, 128  # kTokens, kDepth, kGroup of the sources
LARGEST_NORM_ERROR = 0.002  # rounding normally distributed numbers to bf16 gives 0.0017


@dataclass(frozen=True)
class Step:
    """How one step of the ladder is launched.

    Args:
        number: 1 to 6; the kernel's symbol is `step` and the number.
        name: What follows the number in the source's name.
        weights: Form of the weights: `rows` (bf16 [n, k]), `fragments` (packed bf16), `codes` (packed).
        threads: Threads of a CTA.
        shared_bytes: Dynamic shared memory of a CTA.
        features: Output features of a CTA.
        cluster: CTAs of a cluster.
        box: Tokens of one TMA load of activations; 0: the kernel loads them itself.
        persistent: The grid fills the GPU once, whatever the shape, and needs a workspace.
    """

    number: int
    name: str
    weights: str
    threads: int
    shared_bytes: int
    features: int = 64
    cluster: int = 1
    box: int = TOKENS
    persistent: bool = False

    @property
    def symbol(self) -> str:
        """The kernel's name in the source."""
        return f"step{self.number}"

    @property
    def source(self) -> Path:
        """Where the source lies."""
        return FOLDER / f"{self.symbol}_{self.name}.cu"

    def grid(self, m: int, n: int, k: int, sms: int) -> tuple[int, int]:
        """Return the CTAs of a launch along x and y, for a GPU of so many SMs."""
        tokens, features = -(-m // TOKENS), n // self.features
        if not self.persistent:
            return tokens, features
        stages = tokens * features // self.cluster * (k // DEPTH)
        return self.cluster * min(sms // self.cluster, stages), 1

    @property
    def cluster_shape(self) -> tuple[int, int]:
        """CTAs of a cluster along x and y, as the source declares them."""
        return (self.cluster, 1) if self.persistent else (1, self.cluster)

    @property
    def slot_bytes(self) -> int:
        """Bytes of workspace per CTA: float32 sums of one tile."""
        return self.features * TOKENS * 4 if self.persistent else 0


STEPS = (
    Step(1, "wgmma", "rows", 128, 24 << 10, box=0),
    Step(2, "pipeline", "rows", 160, 4 * (24 << 10) + 64),
    Step(3, "register_operand", "fragments", 160, 4 * (24 << 10) + 64),
    Step(4, "int4", "codes", 160, 5 * (19 << 10) + 80),
    Step(5, "warpgroups", "codes", 384, 8 * (25 << 10) + 128, features=256, cluster=2, box=64),
    Step(6, "stream_k", "codes", 384, 8 * (25 << 10) + 128, features=256, cluster=2, box=64, persistent=True),
)


@dataclass(frozen=True)
class Problem:
    """Random activations and weights of one shape.

    Args:
        m: Tokens.
        n: Output features, a multiple of 512.
        k: Input features, a multiple of 128.
        seed: Of the random numbers.
    """

    m: int
    n: int
    k: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.m < 1 or self.n < 1 or self.k < 1 or self.n % 512 or self.k % GROUP:
            raise InputError(
                f"m must be positive, n a multiple of 512, k of {GROUP} (got {self.m} {self.n} {self.k})"
            )

    @cached_property
    def x(self) -> npt.NDArray[Any]:
        """Activations, bf16 [m, k]."""
        return self._random(0).standard_normal((self.m, self.k), np.float32).astype(ml_dtypes.bfloat16)

    @cached_property
    def codes(self) -> npt.NDArray[np.uint8]:
        """Weights' codes [k, n], 0 to 15."""
        return self._random(1).integers(0, 16, (self.k, self.n), np.uint8)

    @cached_property
    def scales(self) -> npt.NDArray[Any]:
        """Weights' scales, bf16 [k / 128, n]."""
        scales = self._random(2).uniform(0.005, 0.02, (self.k // GROUP, self.n))
        return scales.astype(ml_dtypes.bfloat16)

    @cached_property
    def w(self) -> npt.NDArray[Any]:
        """Weights, bf16 [n, k]: (code - 8) * scale, rounded once, as the kernels do."""
        weights = np.repeat(self.scales.astype(np.float32), GROUP, axis=0)
        weights *= self.codes.astype(np.float32) - 8
        return np.ascontiguousarray(weights.astype(ml_dtypes.bfloat16).T)

    @cached_property
    def expected(self) -> npt.NDArray[np.float32]:
        """The product, float32 [m, n]."""
        product: npt.NDArray[np.float32] = self.x.astype(np.float32) @ self.w.astype(np.float32).T
        return product

    def weights(self, form: str) -> list[npt.NDArray[Any]]:
        """Return the arrays that a kernel reads its weights from, in one of the forms of `Step`."""
        if form == "rows":
            return [self.w]
        if form == "fragments":
            return [pack_fragments(self.w)]
        return self._packed

    def wrong(self, d: npt.NDArray[Any]) -> str:
        """Return what is wrong with a product in bf16 [m, n], or "".

        The error of an element is at most its own rounding, 2**-8 of it, and that of a float32 sum
        of k products, in which an addition may lose 2**-23 of the sum of magnitudes, which Cauchy
        and Schwarz bound. That leaves room for small mistakes; the norm of all errors does not: one
        input feature left out would be 1 / sqrt(k) of it.
        """
        x, w = self.x.astype(np.float32), self.w.astype(np.float32)
        magnitudes = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
        error = np.abs(d.astype(np.float32) - self.expected)
        bad = ~(error <= 2.0**-8 * np.abs(self.expected) + self.k * 2.0**-23 * magnitudes)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            got, want = float(d[row, column]), self.expected[row, column]
            return f"{bad.sum()} of {bad.size} wrong, first [{row}, {column}]: {got} instead of {want}"
        norm = float(np.linalg.norm(error) / np.linalg.norm(self.expected))
        return "" if norm <= LARGEST_NORM_ERROR else f"relative error {norm:.5f} > {LARGEST_NORM_ERROR}"

    @cached_property
    def _packed(self) -> list[npt.NDArray[Any]]:
        return [pack_codes(self.codes, U4B8), pack_scales(self.scales, self.k, GROUP)]

    def _random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])


def pack_fragments(w: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Reorder bf16 weights [n, k] as the row operand: uint32 [n / 64, k / 64, warp, step, lane, register].

    n = 64 s + 16 warp + 8 h + g, k = 64 b + 16 step + 8 q + 2 t + half; lane = 4 g + t, register = 2 q + h.
    """
    n, k = w.shape
    split = w.view(np.uint16).reshape(n // 64, 4, 2, 8, k // 64, 4, 2, 4, 2)  # s warp h g b step q t half
    ordered = np.ascontiguousarray(split.transpose(0, 4, 1, 5, 3, 7, 6, 2, 8))
    return ordered.view(np.uint32).reshape(n // 64, k // 64, 4, 4, 32, 4)


def compile_step(step: Step) -> Compiled:
    """Compile a step for compute capability 9.0 with NVRTC.

    Raises:
        CompileError: It does not compile; `log` holds the compiler's words.
        ToolchainError: NVRTC is missing.
    """
    text = step.source.read_text(encoding="utf-8")
    return compile_text(step.source.name, text, included_headers(text, FOLDER), parse("9.0a"))


def arguments(
    step: Step,
    problem: Problem,
    *,
    x: int,
    weights: Sequence[int],
    d: int,
    partials: int,
    tensor_map: Callable[[int, int, int, int], Any],
) -> list[Any]:
    """Return a kernel's arguments as ctypes values.

    Args:
        step: Whose kernel.
        problem: Its shape.
        x: Address of the activations.
        weights: Addresses of the weights' arrays.
        d: Address of the product.
        partials: Address of the workspace.
        tensor_map: Makes a tensor map: address, rows, columns, rows of a box -> 128 bytes.
    """
    m, n, k = problem.m, problem.n, problem.k
    inputs: list[Any] = [tensor_map(x, m, k, step.box) if step.box else ctypes.c_void_p(x)]
    if step.weights == "rows" and step.box:
        inputs.append(tensor_map(weights[0], n, k, step.features))
    else:
        inputs += [ctypes.c_void_p(address) for address in weights]
    workspace = [ctypes.c_void_p(partials)] if step.persistent else []
    return [*inputs, ctypes.c_void_p(d), *workspace, *(ctypes.c_int(size) for size in (m, n, k))]


def pointers(values: Sequence[Any]) -> Any:
    """Return the array of pointers to arguments that a launch takes; it does not keep them alive."""
    return (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
