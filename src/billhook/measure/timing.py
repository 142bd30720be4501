"""Time calls inside CUDA graphs, contestants in turn, and check every output that was timed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contestant import Launch
from .record import Times

if TYPE_CHECKING:
    import torch

FEWEST_CALLS = 4
LEAST_CALLS = 20  # unless they take too long
MOST_CALLS = 96
KEPT_BYTES = 512 << 20  # of outputs, per contestant
# Short calls are repeated until a graph takes about this long, so that its edges do not show.
GRAPH_US = 500.0
# A GPU at its power limit lowers its clock some 50 ms after the load began (docs/decisions/machete-kernel.md,
# "Power"): two replays of a graph end before, and who had rested begins with the same clock as others.
LONGEST_GRAPH_US = 10_000.0
REST = 3.0  # idle before a contestant, in times of the one before


@dataclass(frozen=True)
class Captured:
    """A contestant's calls as one CUDA graph.

    Args:
        launch: What is called.
        graph: The graph.
        calls: Calls in it.
        outputs: Those of the last calls, each with its own memory.
    """

    launch: Launch
    graph: torch.cuda.CUDAGraph
    calls: int
    outputs: list[torch.Tensor]


def calls_for(expected_us: float, copies: int) -> int:
    """Return how many calls to put into a graph: a multiple of `copies`, 20 at least unless they are long.

    Args:
        expected_us: A lower bound of the time of one call.
        copies: Copies of the weights.
    """
    least = min(LEAST_CALLS, max(FEWEST_CALLS, math.ceil(LONGEST_GRAPH_US / expected_us)))
    wanted = min(MOST_CALLS, max(least, math.ceil(GRAPH_US / expected_us)))
    return -(-wanted // copies) * copies


def capture(launch: Launch, calls: int, copies: int, stream: torch.cuda.Stream) -> Captured:
    """Run each copy once, then capture calls that rotate over the copies into a graph.

    Args:
        launch: What to call.
        calls: Calls to capture.
        copies: Copies of the weights.
        stream: Where to capture.
    """
    import torch

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for copy in range(copies):  # compiles, loads modules, allocates workspaces
            output = launch.call(copy)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Outputs that are kept do not share memory, so each can be checked. All are, unless they are large: then
    # early ones are dropped, and later calls write where those did.
    outputs: deque[torch.Tensor] = deque(maxlen=max(2, KEPT_BYTES // output.nbytes))
    # Not the context manager `torch.cuda.graph`, which gives all cached memory back to the driver each time.
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for call in range(calls):
                outputs.append(launch.call(call % copies))
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    return Captured(launch, graph, calls, list(outputs))


def worst_error(captured: Captured, expected: torch.Tensor) -> float:
    """Poison the outputs, replay the graph, return the largest relative error; NaN if one is not whole.

    Args:
        captured: The graph.
        expected: float32 `[rows of D, n]`.
    """
    import torch

    check = captured.launch.check
    for output in captured.outputs:
        output.fill_(float("nan") if output.is_floating_point() else -1)
    captured.graph.replay()
    torch.cuda.synchronize()
    if check is not None:
        return max(check(output) for output in captured.outputs)
    norm = expected.norm()
    errors = [
        (output.reshape(expected.shape).float() - expected).norm() / norm for output in captured.outputs
    ]
    return float(torch.stack(errors).max())


def balanced_order(count: int, step: int) -> list[int]:
    """Return the order of contestants in a round: over the rounds each follows each other equally often.

    Args:
        count: Contestants.
        step: The round, from 0 on; 2 * count rounds are balanced (count if that is even).

    Source: E. J. Williams, Experimental designs balanced for the estimation of residual effects of
    treatments, Australian Journal of Scientific Research A 2, 1949.
    """
    zigzag = [(at + 1) // 2 if at % 2 else count - at // 2 for at in range(count)]  # 0, 1, -1, 2, -2, ...
    order = [(one + step) % count for one in zigzag]
    return order[::-1] if step // count % 2 else order


def interleave(graphs: Sequence[Captured], rounds: int, rest: float) -> list[list[float]]:
    """Time every graph once per round, in a balanced order.

    Each graph is replayed twice and the second replay timed: the GPU is then busy when it
    begins, so that no launch latency of the host is counted.

    Args:
        graphs: One for each contestant.
        rounds: How often each is timed.
        rest: How long the GPU idles before a contestant, as a multiple of the time that the one before took.

    Returns:
        For each graph, microseconds per call by round.
    """
    import torch

    samples: list[list[float]] = [[] for _ in graphs]
    worked = 0.0  # seconds
    for step in range(rounds):
        for index in balanced_order(len(graphs), step):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            time.sleep(rest * worked)
            begun = time.perf_counter()
            graphs[index].graph.replay()
            start.record()
            graphs[index].graph.replay()
            end.record()
            end.synchronize()
            samples[index].append(1000.0 * start.elapsed_time(end) / graphs[index].calls)
            worked = time.perf_counter() - begun
    return samples


def summarize(samples: Sequence[float], calls: int, copies: int) -> Times:
    """Return median and spread of one contestant's rounds.

    Args:
        samples: Microseconds per call, one number per round.
        calls: Calls in a graph.
        copies: Copies of the weights that they rotated over.
    """
    ordered = sorted(samples)
    return Times(
        median_us=quantile(ordered, 0.5),
        p10_us=quantile(ordered, 0.1),
        p90_us=quantile(ordered, 0.9),
        rounds=len(ordered),
        calls=calls,
        copies=copies,
    )


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Return a quantile of sorted numbers, interpolated between neighbours."""
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
