"""The whole path from a layer to its records, on CPU tensors: only capturing and timing are stood in for."""

from dataclasses import replace

import pytest
from cpu.measure.made_records import MACHINE

from billhook.arch import parse
from billhook.errors import UnsupportedError
from billhook.measure import report, run
from billhook.measure.contestant import Launch
from billhook.measure.record import Record
from billhook.measure.roofline import PEAKS
from billhook.measure.workload import Workload, gemm_types, usual_group_size
from billhook.weights import FORMATS

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

from billhook.measure.ours import Ours, Packing, parse_tile  # noqa: E402
from billhook.measure.peers.torch_matmul import TorchMatmul  # noqa: E402
from billhook.measure.timing import Captured  # noqa: E402

DENSE = Workload("dense", 128, 256, (1, 5), gemm_types("bf16"), 128)
MOE = replace(DENSE, name="moe", num_experts=4, top_k=2)
ARCH = parse("9.0a")


class Broken:
    """Leaves its outputs as they are, or refuses."""

    def __init__(self, name: str, at: str) -> None:
        self.name, self.at = name, at

    def version(self) -> str:
        return "1"

    def prepare(self, weights, cases):  # type: ignore[no-untyped-def]
        if self.at == "prepare":
            raise UnsupportedError("not installed")

        def bind(inputs):  # type: ignore[no-untyped-def]
            if self.at == "bind":
                raise RuntimeError("refuses this shape\nand says more")
            rows = inputs.problem.m * max(1, inputs.problem.top_k)
            return Launch(lambda copy: torch.zeros((rows, inputs.problem.n)))

        return bind


class Replay:
    """Calls again what was captured, into the same outputs."""

    def __init__(self, launch: Launch, outputs: list, copies: int) -> None:
        self.launch, self.outputs, self.copies = launch, outputs, copies

    def replay(self) -> None:
        for index, output in enumerate(self.outputs):
            output.copy_(self.launch.call(index % self.copies))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> run.Run:
    def capture(launch: Launch, calls: int, copies: int, stream: object) -> Captured:
        outputs = [launch.call(index % copies) for index in range(min(calls, 3))]
        return Captured(launch, Replay(launch, outputs, copies), calls, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "capture", capture)
    monkeypatch.setattr(run, "interleave", lambda graphs, rounds, rest: [[7.0] * rounds for _ in graphs])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return run.Run(torch.device("cpu"), None, replace_l2(), PEAKS["H100 80GB HBM3"], 3, 0, 0, "2026-11-21")  # type: ignore[arg-type]


def replace_l2():  # type: ignore[no-untyped-def]
    from msgspec.structs import replace as with_fields

    return with_fields(MACHINE, l2_bytes=20_000)


def measure(session: run.Run, workload: Workload, contestants: list) -> list[Record]:
    found: list[Record] = []
    run.measure(session, workload, contestants, found.extend)
    return found


@pytest.mark.parametrize("workload", [DENSE, MOE, replace(MOE, per_slot=True)])
def test_our_kernels_and_fixed_tiles_are_checked_and_timed(session: run.Run, workload: Workload) -> None:
    packing = Packing()
    tile, _ = parse_tile("m16n128k256s2")
    records = measure(session, workload, [Ours(ARCH, packing), Ours(ARCH, packing, tile)])
    assert [(one.case.tokens, one.contestant) for one in records] == [
        (tokens, name) for tokens in (1, 5) for name in ("ours", "ours:m16n128k256s2")
    ]
    assert all(one.times and one.times.median_us == 7.0 for one in records), records
    assert all(one.error is not None and one.error < 0.005 for one in records)
    assert records[1].kernel.endswith(
        "m16n128k256s2_moe_sm90a" if workload.moe else "m16n128k256s2_dense_sm90a"
    )
    assert all(one.case.experts_hit >= 2 for one in records) == workload.moe


@pytest.mark.parametrize("layer", [DENSE, MOE], ids=lambda layer: layer.name)
@pytest.mark.parametrize(
    ("act", "name"),
    [("bf16" if held.activations else "e4m3fn", name) for name, held in FORMATS.items()]
    + [("f16", "nvfp4"), ("e4m3fn", "u4b8"), ("s8", "u4b8")],
)
def test_every_format_is_checked_and_timed(session: run.Run, layer: Workload, act: str, name: str) -> None:
    types = gemm_types(act, name)
    layer = replace(layer, types=types, group_size=usual_group_size(types), tokens=(64,))
    (ours,) = measure(session, layer, [Ours(ARCH, Packing())])
    assert ours.times, ours.skipped
    assert ours.case.format == name
    assert ours.error is not None
    assert ours.error < 0.005
    assert ours.case.problem.types == types


def test_refusals_and_wrong_answers_become_reasons(session: run.Run) -> None:
    contestants = [TorchMatmul(), Broken("absent", "prepare"), Broken("picky", "bind"), Broken("wrong", "")]
    records = measure(session, replace(DENSE, tokens=(5,)), contestants)
    reasons = {one.contestant: one.skipped for one in records}
    assert reasons["torch"] == ""
    assert reasons["absent"] == "not installed"
    assert reasons["picky"] == "refused: refuses this shape"
    assert reasons["wrong"] == "wrong: relative error 1 is above 0.01"
    assert "skipped: wrong" in report.render(records)


def test_a_tile_that_is_illegal_says_why(session: run.Run) -> None:
    tile, _ = parse_tile("m64n256k256s8")
    (record,) = measure(session, replace(DENSE, tokens=(1,)), [Ours(ARCH, Packing(), tile)])
    assert "shared memory" in record.skipped


def test_outputs_that_are_not_written_are_caught(session: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replay, "replay", lambda self: None)
    (record,) = measure(session, replace(DENSE, tokens=(1,)), [TorchMatmul()])
    assert record.skipped == "wrong: relative error nan is above 0.01"
    assert record.error is None
