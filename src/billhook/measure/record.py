"""Measurements as data: one JSON line per problem and contestant, with all that is needed to judge it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ..config import Problem, parse_types
from ..errors import ConfigError, InputError, StorageError

SCHEMA = 1


class Machine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where and with what a run was made.

    Args:
        gpu: The GPU's name, as the driver tells it.
        sms: Its multiprocessors.
        l2_bytes: Its L2 cache.
        driver: Version of the driver; "" if it could not be asked.
        cuda: CUDA version that torch was built with.
        torch: Version of torch.
        commit: Billhook's commit; "" if unknown.
        command: The command line.
        peers: Versions of the peers that were found, by name.
    """

    gpu: str
    sms: int
    l2_bytes: int
    driver: str
    cuda: str
    torch: str
    commit: str
    command: str
    peers: dict[str, str] = {}


class Case(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was computed.

    Args:
        layer: The layer's name in its shape file or model.
        tokens: Tokens; rows of A unless `per_slot`.
        m: Rows of A.
        n: Output features of one weight matrix.
        k: Input features.
        types: Element types of A, B, scales and D, as `bf16_u4b8_bf16_bf16`.
        group_size: Weights along k that share one scale; -1 for channel scales.
        num_experts: Weight matrices; 0 for dense.
        top_k: Experts per row of A; 0 for dense.
        experts_hit: MoE: experts that got at least one row.
        format: Format of the weights, a name of `weights.FORMATS`.
    """

    layer: str
    tokens: int
    m: int
    n: int
    k: int
    types: str
    group_size: int
    num_experts: int = 0
    top_k: int = 0
    experts_hit: int = 0
    format: str = "u4b8"

    @property
    def problem(self) -> Problem:
        """The GEMM."""
        types = parse_types(self.types)
        return Problem(self.m, self.n, self.k, types, self.group_size, self.num_experts, self.top_k)

    @property
    def kind(self) -> str:
        """Activations, format and group size in words; "" for what is usual, bf16 x u4b8 by 128."""
        activations = self.types.split("_")[0]
        if (activations, self.format, self.group_size) == ("bf16", "u4b8", 128):
            return ""
        return f"{activations} x {self.format}:{'channel' if self.group_size == -1 else self.group_size}"

    @property
    def label(self) -> str:
        """How tables call it."""
        tokens = f"{'t' if self.num_experts else 'm'}={self.tokens}"
        return " ".join(word for word in (self.layer, self.kind, tokens) if word)


class Times(msgspec.Struct, frozen=True):
    """Microseconds per call, over the rounds of one interleaved run.

    Args:
        median_us: Half of the rounds were faster.
        p10_us: A tenth of the rounds were faster.
        p90_us: Nine tenths of the rounds were faster.
        rounds: Graph launches timed.
        calls: Calls in the graph; each round's time is divided by it.
        copies: Copies of the weights that the calls rotate over.
    """

    median_us: float
    p10_us: float
    p90_us: float
    rounds: int
    calls: int
    copies: int


class Record(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="schema", tag=SCHEMA):
    """One contestant on one problem. Each line says the version of this layout, under `schema`.

    Args:
        run: When the run began, ISO 8601 in UTC; only records of one run may be compared.
        date: When this was measured, ISO 8601 in UTC.
        machine: Where.
        case: What was computed.
        contestant: Who: "read", "ours", "ours:TILE", "torch", "marlin", "machete" or "humming".
        floor_us: The larger of bytes over bandwidth and operations over peak, microseconds.
        bytes: Bytes that must move.
        flops: Operations that must be done.
        bandwidth: Bytes per second that the floor assumes.
        peak_flops: Operations per second that the floor assumes.
        times: None if it was skipped.
        skipped: Why there are no times.
        error: Norm of (output - float32 reference) over the reference's norm, worst of all timed outputs.
        kernel: Name of the kernel, where the contestant tells it.
        sm_clock_mhz: Clock of the multiprocessors just after the rounds; 0 if unknown.
    """

    run: str
    date: str
    machine: Machine
    case: Case
    contestant: str
    floor_us: float
    bytes: int
    flops: int
    bandwidth: float
    peak_flops: float
    times: Times | None = None
    skipped: str = ""
    error: float | None = None
    kernel: str = ""
    sm_clock_mhz: int = 0

    def __post_init__(self) -> None:
        if (self.times is None) != bool(self.skipped):
            raise ValueError("a record has either times or a reason why it was skipped")


def append(path: Path, records: Iterable[Record]) -> None:
    """Append records to a JSONL file, each line written whole.

    Raises:
        StorageError: The file cannot be written.
    """
    text = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write records ({error.strerror}); choose another --out"
        ) from error


def read(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of JSONL files, in order.

    Raises:
        ConfigError: A file cannot be read, or a line is not a record; the message names file, line and key.
        InputError: The files hold no record.
    """
    decoder = msgspec.json.Decoder(Record)
    names, found = [], False
    for path in paths:
        names.append(str(path))
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}:{number}: not a measurement record ({error})") from error
            found = True
            yield record
    if not found:
        raise InputError(f"no measurement record in {', '.join(names)}")
