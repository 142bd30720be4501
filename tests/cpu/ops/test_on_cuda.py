"""What the operators launch on a GPU, with launches that only listen and tensors on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from billhook.config import KernelConfig, parse_name  # noqa: E402
from billhook.dispatch.gemm import GemmLaunch  # noqa: E402
from billhook.dispatch.routing import capacity  # noqa: E402
from billhook.errors import InputError, WeightError  # noqa: E402
from billhook.ops import calls, library, on_cuda  # noqa: E402
from billhook.ops.tensors import stands_alone  # noqa: E402

DENSE = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m64n128k64s5_dense_sm90a")
GROUPED = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m256n128k64s5_grouped_sm90a")
M, N, K = 9, 192, 256
TOKENS, TOP_K, EXPERTS = 7, 2, 4
ROWS, BLOCK_M = TOKENS * TOP_K, 256
BLOCKS = capacity(ROWS, EXPERTS, BLOCK_M)
BF16 = torch.bfloat16
SHIFTED = torch.zeros(M * K + 1, dtype=BF16)


class Listener:
    """Stands in for the kernels of a process: each one asked for is there, and each launch is kept."""

    def __init__(self) -> None:
        self.calls: dict[Any, Any] = {}
        self.asked: list[Any] = []
        self.launched: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def gemm(self, request: Any) -> Any:
        self.asked.append(request)
        return self.load(DENSE, request.device)

    def load(self, config: KernelConfig, device: int) -> Any:
        kernel = SimpleNamespace(device=device, sms=132, ctas_per_sm=1)
        return SimpleNamespace(config=config, kernel=kernel)

    def group(self, device: int) -> str:
        return "group_rows"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Listener:
    listener = Listener()

    def start(self: GemmLaunch, *arguments: Any, **addresses: Any) -> None:
        listener.launched.append(("gemm", (self, *arguments), addresses))

    def group(*arguments: Any, **named: Any) -> None:
        listener.launched.append(("group", arguments, named))

    monkeypatch.setattr(calls, "kernels", lambda: listener)
    monkeypatch.setattr(calls, "current_stream", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(GemmLaunch, "start", start)
    monkeypatch.setattr(calls.launch, "launch_group", group)
    return listener


def numbers(launch: GemmLaunch) -> dict[str, int]:
    names = ("m", "n", "k", "lda", "ldd", "strips", "blocks", "groups", "top_k", "split_k")
    return dict(zip(names, launch._numbers, strict=True))


def dense(m: int = M, *options: Any) -> tuple[Any, ...]:
    a = torch.zeros((m, K), dtype=BF16)
    codes = torch.zeros(3, 4, 4, 32, 4, dtype=torch.int32)
    return (a, codes, torch.zeros(3, 2, 64, dtype=BF16), N, 128, "u4b8", *options)


def moe(config: KernelConfig) -> tuple[Any, ...]:
    ids = torch.zeros(BLOCKS * BLOCK_M, dtype=torch.int32)
    a = torch.zeros((TOKENS, K + 8), dtype=BF16)[:, :K]
    scales = torch.zeros(EXPERTS, 3, 2, 64, dtype=BF16)
    head = (a, torch.zeros(EXPERTS, 3, 4, 4, 32, 4), scales, N, 128, "u4b8")
    routing = (TOP_K, ids, ids.clone(), ids.clone(), BLOCK_M, True)
    return (*head, *routing, None, None, None, None, True, config.name)


def test_a_kind_of_call_is_prepared_once_and_sends_its_own_addresses(kernels: Listener) -> None:
    first, second = dense(), dense()
    one, two = on_cuda.gemm(*first), on_cuda.gemm(*second)
    (_, (launch, stream, capturing), sent), (_, (again, *_), other) = kernels.launched
    assert len(kernels.asked) == 1
    assert again is launch
    assert (stream, capturing, one.shape, one.dtype) == (5, False, (M, N), BF16)
    for arguments, addresses, d in ((first, sent, one), (second, other, two)):
        a, codes, scales, *_ = arguments
        assert addresses == {
            "a": a.data_ptr(),
            "codes": codes.data_ptr(),
            "scales": scales.data_ptr(),
            "d": d.data_ptr(),
        }
    assert numbers(launch) == {
        "m": M, "n": N, "k": K, "lda": K, "ldd": N,
        "strips": 3, "blocks": 4, "groups": 2, "top_k": 1, "split_k": 1,
    }  # fmt: skip


def test_what_may_change_the_launch_is_prepared_anew(kernels: Listener) -> None:
    wide = torch.zeros(M, K + 8, dtype=BF16)[:, :K]
    _, *weight = dense()
    out = torch.zeros(M, N + 8, dtype=BF16)[:, :N]
    given = dense()
    variants: list[Callable[[], Any]] = [
        lambda: on_cuda.gemm(*dense()),
        lambda: on_cuda.gemm(*dense(m=M + 1)),
        lambda: on_cuda.gemm(wide, *weight),
        lambda: on_cuda.gemm(*dense(M, None, None, torch.zeros(N, dtype=BF16))),
        lambda: on_cuda.gemm(*dense(M, None, None, None, False)),
        lambda: on_cuda.gemm(*dense(M, None, None, None, True, DENSE.name)),
        lambda: on_cuda.gemm_out(torch.zeros(M, N, dtype=BF16), *given),
        lambda: on_cuda.gemm_out(out, *given),
    ]
    for _ in range(2):
        for variant in variants:
            variant()
    launches = [launch for _, (launch, *_), _ in kernels.launched]
    assert launches[: len(variants)] == launches[len(variants) :]
    assert len(set(launches)) == len(variants)
    _, _, strided, biased, whole, _, _, into = launches[: len(variants)]
    assert (numbers(strided)["lda"], numbers(into)["ldd"], numbers(whole)["split_k"]) == (K + 8, N + 8, 0)
    assert [addresses["bias"] != 0 for _, (launch, *_), addresses in kernels.launched if launch is biased]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, codes, scales: (a.half(), codes, scales), "torch.bfloat16 like the weight's scales"),
        (lambda a, codes, scales: (a[0], codes, scales), r"must be \[m, k\]"),
        (lambda a, codes, scales: (torch.zeros(M, K + 64, dtype=BF16), codes, scales), "k=320"),
        (lambda a, codes, scales: (torch.zeros(M, K + 1, dtype=BF16)[:, :K], codes, scales), "16 bytes"),
        (lambda a, codes, scales: (SHIFTED[1:].view(M, K), codes, scales), "16 bytes"),
        (lambda a, codes, scales: (a.t().contiguous().t(), codes, scales), "dense rows"),
        (lambda a, codes, scales: (a, codes[:, :3], scales), "3 blocks of 64"),
        (lambda a, codes, scales: (a, codes, scales.half()), "torch.float16 like the weight's scales"),
    ],
)  # fmt: skip
def test_a_right_call_excuses_no_wrong_one(
    kernels: Listener, change: Callable[..., tuple[Any, ...]], words: str
) -> None:
    right = dense()
    on_cuda.gemm(*right)
    for _ in range(2):
        with pytest.raises(WeightError, match=words):
            on_cuda.gemm(*change(*right[:3]), *right[3:])
    assert len(kernels.launched) == 1


def test_optional_tensors_and_outputs_are_checked_by_their_own_kind(kernels: Listener) -> None:
    bias, out = torch.zeros(N, dtype=BF16), torch.zeros(M, N, dtype=BF16)
    right = dense(M, None, None, bias)
    on_cuda.gemm_out(out, *right)
    for wrong in (
        bias.half(),
        bias[:-16],
        torch.zeros(2 * N, dtype=BF16)[::2],
        torch.zeros(N + 1, dtype=BF16)[1:],
    ):
        with pytest.raises(WeightError, match="bias must"):
            on_cuda.gemm_out(out, *right[:-1], wrong)
    for bad in (out.half(), out[:-1], out.t(), torch.zeros(M * N + 1, dtype=BF16)[1:].view(M, N)):
        with pytest.raises(WeightError, match="out must"):
            on_cuda.gemm_out(bad, *right)
    assert len(kernels.launched) == 1


@pytest.mark.parametrize("name", ["codes", "scales", "zeros"])
def test_a_misaligned_weight_is_refused_though_an_aligned_one_was_not(kernels: Listener, name: str) -> None:
    a, codes, scales, *numbers = dense()
    tensors = {"codes": codes, "scales": scales, "zeros": scales.clone()}
    numbers[-1] = "u4"
    config = DENSE.name.replace("u4b8", "u4")

    def multiply() -> None:
        held = (tensors["codes"], tensors["scales"], *numbers, tensors["zeros"], None, None, True, config)
        on_cuda.gemm(a, *held)

    multiply()
    one = tensors[name]
    shifted = one.new_empty(one.numel() + 1)[1:].view(one.shape).copy_(one)
    tensors[name] = shifted
    with pytest.raises(WeightError, match=r"16-byte aligned; use \.clone\(\)"):
        multiply()
    tensors[name] = shifted.clone()
    multiply()
    assert len(kernels.launched) == 2


def test_a_kernel_that_is_named_must_serve_the_problem(kernels: Listener) -> None:
    for named, words in (
        (GROUPED, "is for MoE layers"),
        (replace(DENSE, group_size=64), "group_size is 64, the problem's 128"),
        (parse_name(DENSE.name.replace("bf16", "f16")), "types are f16_u4b8_f16_f16"),
    ):
        with pytest.raises(InputError, match=f"kernel {named} does not serve this problem: {words}"):
            on_cuda.gemm(*dense(M, None, None, None, True, named.name))
    p = list(moe(GROUPED))
    p[10] = 2 * BLOCK_M  # each block of the routing
    p[7] = torch.zeros(2 * len(p[7]), dtype=torch.int32)  # sorted_token_ids
    with pytest.raises(InputError, match=r"takes blocks of 256 rows \(routed in 512\)"):
        on_cuda.moe_gemm(*p)
    assert not kernels.launched


def test_sums_of_int8_products_have_32_bits_whoever_chooses_the_kernel(kernels: Listener) -> None:
    k = 1 << 17
    config = parse_name("machete_s8_u4b8_bf16_bf16_gch_m16n128k256s4_dense_sm90a")
    a, tokens = torch.zeros((1, k), dtype=torch.int8), torch.ones(1)
    codes = torch.zeros(1, k // 64, 4, 32, 4, dtype=torch.int32)
    weight = (codes, torch.zeros(1, 1, 64, dtype=BF16), 64, -1, "u4b8")
    with pytest.raises(InputError, match="k must be at most 131071 with s8"):
        on_cuda.gemm(a, *weight, None, None, None, True, config.name, tokens)
    assert not kernels.launched


def test_other_kernels_forget_what_was_prepared(kernels: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cuda.gemm(*dense())
    other = Listener()
    monkeypatch.setattr(calls, "kernels", lambda: other)
    on_cuda.gemm(*dense())
    assert (len(kernels.asked), len(other.asked)) == (1, 1)


def test_no_more_calls_are_kept_than_have_room(kernels: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MOST_CALLS", 3)
    for m in range(1, 9):
        on_cuda.gemm(*dense(m=m))
    assert len(kernels.calls) <= 3


def test_no_rows_need_no_kernel(kernels: Listener) -> None:
    assert on_cuda.gemm(*dense(m=0)).shape == (0, N)
    assert not kernels.asked and not kernels.launched


def test_rows_are_grouped_before_a_gemm_that_wants_them_so(kernels: Listener) -> None:
    p = moe(GROUPED)
    a, ids = p[0], p[7]
    on_cuda.moe_gemm_out(torch.empty(ROWS, N, dtype=BF16), *p)
    (first, (kernel, stream), copy), (second, (launch, *_), gemm) = kernels.launched
    assert (first, second, kernel, stream) == ("group", "gemm", "group_rows", 5)
    assert (copy["a"], copy["rows"]) == (a.data_ptr(), ROWS)
    assert (copy["row_bytes"], copy["stride_bytes"], copy["top_k"]) == (2 * K, 2 * (K + 8), TOP_K)
    assert copy["sorted_token_ids"] == gemm["sorted_token_ids"] == ids.data_ptr()
    assert copy["num_tokens_padded"] == gemm["num_tokens_padded"] == p[9].data_ptr()
    assert gemm["expert_ids"] == p[8].data_ptr()
    assert gemm["a"] == copy["grouped"]
    sizes = numbers(launch)
    assert (sizes["m"], sizes["k"], sizes["lda"], sizes["ldd"], sizes["top_k"]) == (ROWS, K, K, N, TOP_K)
    assert launch._rows == BLOCKS * BLOCK_M


def test_rows_that_a_kernel_looks_up_stay_where_they_are(kernels: Listener) -> None:
    p = moe(replace(GROUPED, grouped=False))
    on_cuda.moe_gemm_out(torch.empty(ROWS, N, dtype=BF16), *p)
    ((name, (launch, *_), gemm),) = kernels.launched
    assert (name, gemm["a"], numbers(launch)["lda"]) == ("gemm", p[0].data_ptr(), K + 8)


class _FunctionMode(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    pass


class _DispatchMode(TorchDispatchMode):  # type: ignore[misc]
    pass


class _Subclass(torch.Tensor):  # type: ignore[misc]
    pass


def test_the_dispatcher_is_left_out_only_where_it_has_nothing_to_do() -> None:
    a, b = torch.zeros(2), torch.zeros(2)
    answers: list[bool] = []

    def ask(one: Any) -> Any:
        answers.append(stands_alone(one, b))
        return one + 1

    assert not stands_alone(a, b)  # gradients are on
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert stands_alone(a, b)
            assert not stands_alone(a.as_subclass(_Subclass), b)
            assert not stands_alone(b, torch.nn.Parameter(a, requires_grad=False))
            for mode in (_FunctionMode(), _DispatchMode(), FakeTensorMode()):
                with mode:
                    assert not stands_alone(a, b)
    with torch.no_grad():
        torch.vmap(ask)(a)
        torch.jit.trace(ask, (a,), check_trace=False)
        torch.compile(ask, backend="eager")(a)
    assert answers and not any(answers)


@pytest.mark.parametrize("current", [0, 1])
def test_a_call_runs_on_the_gpu_of_its_tensors(monkeypatch: pytest.MonkeyPatch, current: int) -> None:
    entered: list[int] = []

    @contextlib.contextmanager
    def device(index: int) -> Any:
        entered.append(index)
        yield

    monkeypatch.setattr(library, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", device)
    run = library._guarded(lambda *arguments: len(entered))
    assert run(SimpleNamespace(get_device=lambda: 1), 2) == (current == 0)
    assert run(SimpleNamespace(get_device=lambda: -1), 2) == (current == 0)
