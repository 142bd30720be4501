"""Run kernels, a bundle's or one, on this machine's GPU against the reference.

Every kernel of a bundle runs for every problem class it serves, at the edges of its token ranges
and odd counts between. Outputs lie in memory filled with NaN, with rows behind them
that nobody may touch. The reference is computed on the GPU in float64 for one random
column of every strip of 64; the bound is `formats.reference.error_bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ..arch import parse
from ..build.bundle import Bundle
from ..config import STRIP, KernelConfig, Problem, parse_types
from ..dispatch.provider import use_bundle
from ..errors import ArchError, CudaError
from ..families import rounds_weights
from ..formats.packed import find_packed
from ..formats.reference import ErrorBound, error_bound
from ..plan import Range
from .activations import quantize_activations
from .drawn import draw
from .operators import gemm, moe_gemm, route
from .tensors import DTYPES, NARROW_DTYPES, as_bytes
from .weight import stack_weights

_ODD_COUNTS = (1, 2, 3, 7, 9, 15, 17, 31, 33, 63, 65, 100, 127, 129, 255, 257, 513, 1025)
_MOST_ROWS_FOR_ALL_ROUTINGS = 4096
_ROWS_AT_A_TIME = 2048  # of the float64 reference: bounds its memory
_FEWEST_FOR_RMS = 256  # samples below which a root mean square says little
_GUARD_ROWS = 8


@dataclass
class Verdict:
    """What the runs of one kernel came to.

    Args:
        kernel: Its name.
        arch: The target it was compiled for.
        runs: How often it ran; 0 if it does not run on this GPU.
        worst: Largest error of an element as a fraction of its bound; infinite if an output was not finite,
            or was written where it should not be.
        worst_at: The run with the largest error, in words.
        rms: Largest root-mean-square error of a run as a fraction of its bound.
    """

    kernel: str
    arch: str
    runs: int = 0
    worst: float = 0.0
    worst_at: str = ""
    rms: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every run stayed within its bounds."""
        return self.worst <= 1 and self.rms <= 1


def verify_bundle(
    bundle: Bundle,
    capability: tuple[int, int],
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    quick: bool = False,
    device: str = "cuda",
    tell: Callable[[str], None] = lambda line: None,
) -> list[Verdict]:
    """Run every kernel of a bundle that this GPU can run.

    Args:
        bundle: The bundle.
        capability: The GPU's compute capability: dispatch entries for others are left out.
        max_tokens: Largest number of tokens; what the bundle was planned for if None.
        seed: Of weights, activations and routings.
        quick: Run each range's first and last count only.
        device: Where to run; on "cpu" the operators' own reference is checked, which needs no GPU.
        tell: Told what comes next, in words.

    Returns:
        A verdict for every GEMM kernel, in the bundle's order.

    Raises:
        ArchError: No kernel of the bundle runs on this GPU.
        CudaError: A kernel crashed; the message names it and the problem.
    """
    use_bundle(bundle.folder)
    verdicts = {kernel.name: Verdict(kernel.name, kernel.arch) for kernel in bundle.plan.kernels}
    configs = {kernel.name: kernel.config for kernel in bundle.plan.kernels}
    entries = [entry for entry in bundle.plan.dispatch if parse(entry.arch).runs_on(capability)]
    if not entries:
        raise ArchError(
            f"bundle {bundle.folder} holds kernels for {', '.join(bundle.plan.archs)}; "
            f"this GPU is {capability[0]}.{capability[1]}: build with --arch native"
        )
    generator = torch.Generator(device).manual_seed(seed)
    for entry in entries:
        layers = [one for one in bundle.plan.layers if entry.serves(one.problem(1), capability)]
        rows_per_token = max((layer.rows_per_token for layer in layers), default=1)
        name = layers[0].id if layers else f"{entry.n}x{entry.k}"
        tell(f"{name}: n={entry.n} k={entry.k} group_size={entry.group_size} on {entry.arch}")
        types = parse_types(entry.types)
        problem = Problem(1, entry.n, entry.k, types, entry.group_size, entry.num_experts, entry.top_k)
        case = _Case(problem, generator)
        limit = (max_tokens or bundle.plan.max_tokens) * rows_per_token
        for span in entry.ranges:
            verdict, config = verdicts[span.kernel], configs[span.kernel]
            for m in _counts(span, limit, quick):
                case.run(config, m, name, verdict)
    return list(verdicts.values())


def verify_kernel(
    config: KernelConfig, problem: Problem, counts: Iterable[int], *, seed: int = 0, device: str = "cuda"
) -> Verdict:
    """Run one kernel, compiled on first use, for one weight and some numbers of tokens.

    Args:
        config: The kernel.
        problem: What it computes; `m` is not looked at.
        counts: Numbers of tokens.
        seed: Of weights, activations and routings.
        device: Where to run, as in `verify_bundle`.

    Raises:
        CudaError: The kernel crashed; the message names the problem.
    """
    verdict = Verdict(config.name, str(config.arch))
    case = _Case(problem, torch.Generator(device).manual_seed(seed))
    for m in counts:
        case.run(config, m, f"n={problem.n} k={problem.k}", verdict)
    return verdict


def _counts(span: Range, limit: int, quick: bool) -> list[int]:
    """Return the row counts at which a range is tried."""
    last = min(span.last, limit)
    edges = {span.first, last}
    if not quick:
        edges |= {span.first + 1, last - 1, (span.first + last) // 2 | 1, *_ODD_COUNTS}
    return sorted(m for m in edges if span.first <= m <= last)


@dataclass(frozen=True)
class _Inputs:
    """What one run multiplies.

    Args:
        a: Activations.
        token_scales: float32, one for each row of 8-bit activations, or None.
        ids: Experts of each row of A; None for a dense layer.
        factors: Top-k weights, or None.
        bias: [experts, n], or None.
    """

    a: torch.Tensor
    token_scales: torch.Tensor | None
    ids: torch.Tensor | None
    factors: torch.Tensor | None
    bias: torch.Tensor | None

    @property
    def top_k(self) -> int:
        """Rows of D for each row of A."""
        return 1 if self.ids is None else int(self.ids.shape[1])

    @property
    def rows(self) -> int:
        """Rows of D."""
        return len(self.a) * self.top_k

    def numbers(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of A in float64; as bytes first, since torch selects no rows of float8 everywhere."""
        found = as_bytes(self.a)[rows].view(self.a.dtype).double()
        return found if self.token_scales is None else found * self.token_scales[rows].double()

    def pieces(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield rows of D that share an expert, a bounded number at a time."""
        if self.ids is None:
            everything = torch.arange(self.rows, device=self.a.device)
            yield from ((rows, 0) for rows in everything.split(_ROWS_AT_A_TIME))
            return
        experts = self.ids.reshape(-1)
        for expert in experts.unique().tolist():
            for rows in (experts == expert).nonzero()[:, 0].split(_ROWS_AT_A_TIME):
                yield rows, int(expert)


class _Case:
    """A problem class with its weights, and with float64 weights for the sampled columns.

    Args:
        problem: What is computed, for any m.
        generator: Source of random numbers.
    """

    def __init__(self, problem: Problem, generator: torch.Generator) -> None:
        self.problem, self.generator, self.device = problem, generator, generator.device
        self.types = problem.types
        self.held = find_packed(self.types)
        self.dtype = DTYPES[self.types.c]
        strips = torch.arange(0, problem.n, STRIP, device=self.device)
        offsets = torch.randint(0, STRIP, strips.shape, device=self.device, generator=generator)
        self.columns = torch.minimum(strips + offsets, torch.full_like(strips, problem.n - 1))
        packed, exact = [], []
        for _ in range(max(1, problem.num_experts)):
            drawn = draw(
                self.held,
                problem.k,
                problem.n,
                problem.group_size,
                dtype=self.dtype,
                generator=generator,
            )
            packed.append(drawn.pack())
            exact.append(drawn.exact(self.columns))
        self.exact = torch.stack(exact)  # [experts, k, columns]
        self.weight = stack_weights(packed) if problem.num_experts else packed[0]
        self.bias = self._normal(max(1, problem.num_experts), problem.n)

    def run(self, config: KernelConfig, m: int, name: str, verdict: Verdict) -> None:
        """Run a kernel for `m` rows of A, and note how far it was off.

        Args:
            config: The kernel.
            m: Rows of A.
            name: The layer, in words.
            verdict: The kernel's, which takes the result.

        Raises:
            CudaError: The kernel crashed.
        """
        size = self.held.summed_group(self.problem.group_size)
        bound = error_bound(self.problem.k, size, self.types.c, rounds_weights(config), self.types.a)
        a, token_scales = self._normal(m, self.problem.k), None
        if self.types.a != self.types.c:
            a, token_scales = quantize_activations(a, NARROW_DTYPES[self.types.a])
        for routing_name, ids in self._routings(m):
            where = f"{name}, m={m}" + (f", {routing_name}" if routing_name else "")
            inputs = _Inputs(a, token_scales, ids, None, None)
            if verdict.runs % 2:  # with bias and top-k weights every other time
                factors = (
                    None
                    if ids is None
                    else torch.rand(ids.shape, device=self.device, generator=self.generator)
                )
                inputs = _Inputs(a, token_scales, ids, factors, self.bias)
            try:
                worst, rms = self._compare(config, inputs, bound)
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
            except RuntimeError as error:  # torch's own; ours are not RuntimeErrors
                raise CudaError(f"kernel {config} crashed on {where}: {error}") from error
            verdict.runs += 1
            verdict.rms = max(verdict.rms, rms)
            if worst > verdict.worst:
                verdict.worst, verdict.worst_at = worst, where

    def _compare(self, config: KernelConfig, inputs: _Inputs, bound: ErrorBound) -> tuple[float, float]:
        """Return the worst error and the root-mean-square error of one run, as fractions of their bounds."""
        a, ids, bias = inputs.a, inputs.ids, inputs.bias
        poisoned = torch.full(
            (inputs.rows + _GUARD_ROWS, self.problem.n), torch.nan, dtype=self.dtype, device=self.device
        )
        out = poisoned[: inputs.rows]
        if ids is None:
            extra = None if bias is None else bias[0]
            gemm(a, self.weight, extra, token_scales=inputs.token_scales, config=config, out=out)
        else:
            complete = bool((ids >= 0).all())
            routing = route(ids, self.problem.num_experts, config.tile.tile_m, complete=complete)
            scales = inputs.token_scales
            moe_gemm(
                a, self.weight, routing, inputs.factors, bias, token_scales=scales, config=config, out=out
            )
        if not bool(out.isfinite().all()) or not bool(poisoned[inputs.rows :].isnan().all()):
            return float("inf"), float("inf")
        return self._distance(out, inputs, bound)

    def _distance(self, out: torch.Tensor, inputs: _Inputs, bound: ErrorBound) -> tuple[float, float]:
        worst = square_error = square = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows, expert in inputs.pieces():
            value, magnitude, activations = self._reference(inputs, rows, expert)
            error = (out[rows][:, self.columns].double() - value).abs()
            worst = torch.maximum(worst, (error / bound.allowed(value, magnitude, activations)).max())
            square_error = square_error + error.square().sum()
            square = square + value.square().sum()
        if len(out) * len(self.columns) < _FEWEST_FOR_RMS or not float(square):
            return float(worst), 0.0
        return float(worst), float((square_error / square).sqrt()) / bound.rms

    def _reference(
        self, inputs: _Inputs, rows: torch.Tensor, expert: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return value, magnitude and activations, as `formats.reference.Reference`, of one expert's rows."""
        left = inputs.numbers(rows // inputs.top_k)
        right = self.exact[expert] if expert >= 0 else torch.zeros_like(self.exact[0])
        value, magnitude = left @ right, left.abs() @ right.abs()
        activations = left.abs().sum(1, keepdim=True)
        if inputs.bias is not None and expert >= 0:
            extra = inputs.bias[expert, self.columns].double()
            value, magnitude = value + extra, magnitude + extra.abs()
        if inputs.factors is None:
            return value, magnitude, activations
        factor = inputs.factors.reshape(-1, 1)[rows].double()
        return value * factor, magnitude * factor, activations * factor

    def _routings(self, m: int) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield the routings to be tried, each with its name."""
        experts, top_k = self.problem.num_experts, self.problem.top_k
        if not experts:
            yield "", None
            return
        chances = torch.rand((m, experts), device=self.device, generator=self.generator)
        ids = chances.topk(top_k, dim=1).indices.int()
        yield "random routing", ids
        if m * top_k > _MOST_ROWS_FOR_ALL_ROUTINGS:
            return
        yield "half of the experts empty", ids % max(1, experts // 2)
        yield "all tokens on one expert", torch.full_like(ids, experts - 1)
        yield "some slots without expert", torch.where(ids % 3 == 0, -1, ids)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator).to(self.dtype)
