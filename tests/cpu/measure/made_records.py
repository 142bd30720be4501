"""Records to test with."""

from billhook.measure.record import Case, Machine, Record, Times

MACHINE = Machine("NVIDIA H100 80GB HBM3", 132, 50 << 20, "580.1", "13.0", "2.11", "abc", "billhook bench")


def make_case(tokens: int = 16, n: int = 4096, k: int = 4096, experts: int = 0, top_k: int = 0) -> Case:
    name = f"{'moe' if experts else 'dense'}{n}"
    return Case(name, tokens, tokens, n, k, "bf16_u4b8_bf16_bf16", 128, experts, top_k, experts)


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
