"""Records to test with."""

from billhook.measure.record import Case, Machine, Record, Times
from billhook.measure.workload import gemm_types, usual_group_size

MACHINE = Machine("NVIDIA H100 80GB HBM3", 132, 50 << 20, "580.1", "13.0", "2.11", "abc", "billhook bench")


def make_case(
    tokens: int = 16,
    *,
    n: int = 4096,
    k: int = 4096,
    experts: int = 0,
    top_k: int = 0,
    weights: str = "u4b8",
    act: str = "bf16",
) -> Case:
    name, types = f"{'moe' if experts else 'dense'}{n}", gemm_types(act, weights)
    group = usual_group_size(types)
    return Case(name, tokens, tokens, n, k, str(types), group, experts, top_k, experts, weights)


def make_record(
    contestant: str,
    median: float | None = None,
    case: Case | None = None,
    run: str = "2026-11-21T10:00:00",
    **more: str,
) -> Record:
    times = None if median is None else Times(median, 0.9 * median, 1.1 * median, 15, 24, 12)
    return Record(
        run=run,
        date=run,
        machine=MACHINE,
        case=case or make_case(),
        contestant=contestant,
        floor_us=3.0,
        bytes=1,
        flops=1,
        bandwidth=3e12,
        peak_flops=8e14,
        times=times,
        **({} if median is not None else {"skipped": "not installed: set X"}) | more,
    )
