"""What is quantized on a GPU, with the kernels run on the CPU, against the operator on CPU tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

from cpu.dispatch import quantizers  # noqa: E402

import billhook  # noqa: E402
from billhook.dispatch import quantizing  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.ops import library, on_cpu, on_cuda  # noqa: E402

NARROW = (torch.float8_e4m3fn, torch.int8)
each_code = pytest.mark.parametrize("dtype", NARROW)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quantizers.build(tmp_path_factory.mktemp("kernels"), "9.0a")


@pytest.fixture
def launched(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Let tensors on the CPU be quantized as on a GPU; holds the kernels, and whether rows were aligned."""
    names: list[tuple[str, bool]] = []
    start = quantizing.launch_quantize

    def find(name: str, device: int) -> Any:
        return SimpleNamespace(name=name, sms=1, ctas_per_sm=2)

    def launch(kernel: Any, stream: int, **arguments: Any) -> None:
        names.append((kernel.name, arguments["aligned"]))
        start(kernel, stream, **arguments)

    monkeypatch.setattr(quantizing, "launch_kernel", quantizers.launcher(compiled))
    monkeypatch.setattr(quantizing, "launch_quantize", launch)
    monkeypatch.setattr(on_cuda, "kernels", lambda: SimpleNamespace(quantize=find))
    monkeypatch.setattr(on_cuda, "current_stream", lambda device: 0)
    return names


def check(x: Any, dtype: Any, *scale: Any) -> None:
    want, got = on_cpu.quantize_activations(x, dtype, *scale), on_cuda.quantize_activations(x, dtype, *scale)
    for mine, theirs in zip(got, want, strict=True):
        assert (mine.dtype, mine.shape, mine.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


@each_code
@pytest.mark.parametrize(
    ("x", "name", "aligned"),
    [
        (torch.float16, "f16", True),
        (torch.bfloat16, "bf16", True),
        (torch.float32, "f32", True),
        (torch.float64, "f32", True),
        (torch.float8_e4m3fn, "f32", True),
    ],
)
def test_every_type_of_input(
    dtype: Any, x: Any, name: str, aligned: bool, launched: list[tuple[str, bool]]
) -> None:
    check(torch.randn(5, 96).to(x), dtype)
    code = "s8" if dtype == torch.int8 else "e4m3fn"
    assert launched == [(f"quantize_{name}_{code}", aligned)]


@each_code
def test_inputs_may_lie_anywhere(dtype: Any, launched: list[tuple[str, bool]]) -> None:
    wide = torch.randn(6, 200, dtype=torch.bfloat16)
    check(wide[:, :96], dtype)
    check(wide[::2, 8:104], dtype)
    check(wide[:1, :64], dtype)
    check(wide[:1].expand(4, 200), dtype)
    check(wide.t(), dtype)  # copied: its 6 columns are no whole chunk
    check(wide[:, 1:97], dtype)
    check(wide[:, :97], dtype)
    check(wide[:, :1], dtype)
    assert [aligned for _, aligned in launched] == [True] * 4 + [False] * 4


@each_code
def test_static_scales_as_numbers_and_as_tensors(dtype: Any, launched: list[tuple[str, bool]]) -> None:
    x = torch.randn(3, 64, dtype=torch.float16)
    check(x, dtype, None, 0.03)
    check(x, dtype, None, 1)
    for scale in (torch.tensor(0.03), torch.tensor([[0.25]]), torch.tensor([0.02], dtype=torch.bfloat16)):
        check(x, dtype, scale)
    check(x, dtype, torch.tensor([0.0]))


@each_code
def test_no_tokens_need_no_kernel(dtype: Any, launched: list[tuple[str, bool]]) -> None:
    check(torch.randn(0, 64), dtype, None, 0.5)
    codes, scales = on_cuda.quantize_activations(torch.randn(0, 64), dtype)
    assert (codes.shape, scales.shape, launched) == ((0, 64), (0, 1), [])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((torch.ones(2, 4), torch.float16), "float8_e4m3fn"),
        ((torch.ones(4), torch.int8), r"\(4,\)"),
        ((torch.ones(2, 0), torch.int8), r"\(2, 0\)"),
        ((torch.ones(2, 4), torch.int8, torch.ones(2)), "one number"),
        ((torch.ones(2, 4), torch.int8, None, 0.0), "positive"),
        ((torch.ones(2, 4), torch.int8, torch.ones(1), 1.0), "one static scale"),
    ],
)
def test_what_cannot_be_quantized_is_refused_alike(
    arguments: tuple[Any, ...], word: str, launched: list[tuple[str, bool]]
) -> None:
    for quantize in (on_cuda.quantize_activations, torch.ops.billhook.quantize_activations):
        with pytest.raises(WeightError, match=word):
            quantize(*arguments)
    assert not launched


@each_code
def test_the_operator_passes_torch_s_own_checks(dtype: Any) -> None:
    x = torch.randn(4, 96)
    # torch compares no float8 tensors, as test_schema would have to
    tests = ("test_faketensor",) if dtype.is_floating_point else ("test_schema", "test_faketensor")
    for arguments in ((x, dtype), (x[:, :48], dtype, torch.tensor([0.1])), (x.t(), dtype, None, 0.1)):
        operator = torch.ops.billhook.quantize_activations.default
        torch.library.opcheck(operator, arguments, test_utils=tests)


@each_code
def test_it_is_one_operator_of_a_compiled_graph(dtype: Any) -> None:
    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True, dynamic=True)
    def run(x: Any, scale: Any) -> Any:
        return billhook.quantize_activations(x * 2, dtype, scale)

    for rows in (3, 5):
        x, scale = torch.randn(rows, 96), torch.tensor([0.02])
        for mine, theirs in zip(run(x, scale), on_cpu.quantize_activations(x * 2, dtype, scale), strict=True):
            assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
    assert sum("billhook.quantize_activations" in one for one in seen) == 1


def test_the_dispatcher_is_left_out_where_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(library, "current_device", lambda: -1)  # that of tensors on the CPU
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    quick = library._shortened("quantize_activations", other=2)
    cells = dict(zip(quick.__code__.co_freevars, quick.__closure__, strict=True))
    monkeypatch.setattr(cells["function"], "cell_contents", lambda *arguments: called.append("alone"))
    monkeypatch.setattr(cells["operator"], "cell_contents", lambda *arguments: called.append("torch"))
    x, scale = torch.ones(2, 4), torch.ones(1)
    quick(x, torch.int8, scale, None)
    with torch.no_grad():
        quick(x, torch.int8, scale, None)
        quick(x, torch.int8, None, 0.5)
    assert called == ["torch", "alone", "alone"]
