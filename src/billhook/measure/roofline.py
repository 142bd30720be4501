"""What a problem must cost at least: the time to move its bytes or to do its operations."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Problem
from ..dtypes import F32
from ..errors import InputError
from ..formats.packed import find_packed

TOKEN_SCALE_BYTES = 4  # float32, one for each row of 8-bit activations


@dataclass(frozen=True)
class Peak:
    """What one GPU sustains.

    Args:
        bandwidth: Global memory, bytes per second, as a device-to-device copy reaches it, read and written.
        flops: Tensor-core operations per second on 16-bit activations, as a large dense product reaches it.
        narrow_flops: The same on 8-bit activations.
    """

    bandwidth: float
    flops: float
    narrow_flops: float

    def of(self, problem: Problem) -> float:
        """Return the operations per second that a problem's activations allow."""
        return self.narrow_flops if problem.types.a.bits == 8 else self.flops


# Measured, not from data sheets. H100: 3.0 TB/s, 800 TFLOP/s, and float8 at 1340 TFLOP/s (m = 4096, n = k =
# 8192 in 409 us; 2026-11-21). H200: a copy of 8.6 GB in 2.0 ms, an 8192^3 bf16 product at 788 TFLOP/s
# (2026-10-28); its multiprocessors are those of the H100, so float8 is taken from there.
PEAKS: dict[str, Peak] = {
    "H100 80GB HBM3": Peak(3.0e12, 800e12, 1340e12),
    "H200": Peak(4.3e12, 800e12, 1340e12),
}


def peak_of(gpu: str, bandwidth: float | None = None, flops: float | None = None) -> Peak:
    """Return what `gpu` sustains.

    Args:
        gpu: The GPU's name, as the driver tells it.
        bandwidth: Bytes per second, in place of the table's.
        flops: Operations per second, in place of the table's, whatever the activations.

    Raises:
        InputError: The GPU is not in the table and a number is missing.
    """
    known = next((peak for name, peak in PEAKS.items() if name in gpu), None)
    bandwidth = bandwidth or (known.bandwidth if known else None)
    wide = flops or (known.flops if known else None)
    narrow = flops or (known.narrow_flops if known else None)
    if bandwidth is None or wide is None or narrow is None:
        raise InputError(
            f"no measured peak for GPU {gpu!r} (known: {', '.join(PEAKS)}); give --bandwidth and --tflops"
        )
    return Peak(bandwidth, wide, narrow)


def weight_bytes(problem: Problem, experts_hit: int | None = None) -> int:
    """Return the bytes of codes, scales and zero points (as wide as codes) that must be read.

    Scales of channels beside those of groups are among them.

    Args:
        problem: The GEMM.
        experts_hit: Experts that have at least one row; all if None. Ignored for dense layers.
    """
    groups = 1 if problem.group_size == -1 else -(-problem.k // problem.group_size)
    types = problem.types
    per_group = types.s.bits + (types.b.bits if types.b.zero_point else 0)
    channel = F32.bits if find_packed(types).folded else 0
    matrix = problem.n * (problem.k * types.b.bits + groups * per_group + channel) // 8
    if not problem.moe:
        return matrix
    return matrix * (problem.num_experts if experts_hit is None else experts_hit)


def rows_out(problem: Problem) -> int:
    """Return the rows of D: m, or one per (token, slot) for MoE."""
    return problem.m * problem.top_k if problem.moe else problem.m


def moved_bytes(problem: Problem, experts_hit: int | None = None) -> int:
    """Return the bytes that must move: weights of the experts hit, A with its scales once, D once."""
    a = problem.types.a
    activations = problem.m * (problem.k * a.bits // 8 + (TOKEN_SCALE_BYTES if a.bits == 8 else 0))
    output = rows_out(problem) * problem.n * problem.types.c.bits // 8
    return weight_bytes(problem, experts_hit) + activations + output


def operations(problem: Problem) -> int:
    """Return the multiplications and additions of the product."""
    return 2 * rows_out(problem) * problem.n * problem.k


def floor_us(problem: Problem, peak: Peak, experts_hit: int | None = None) -> float:
    """Return the microseconds that no kernel beats: moving the bytes or doing the operations.

    Args:
        problem: The GEMM.
        peak: What the GPU sustains.
        experts_hit: As in `weight_bytes`.
    """
    moving = moved_bytes(problem, experts_hit) / peak.bandwidth
    return 1e6 * max(moving, operations(problem) / peak.of(problem))
