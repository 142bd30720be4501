"""What the operators launch on a GPU, with launches that only listen and tensors on the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

from billhook.config import KernelConfig, parse_name  # noqa: E402
from billhook.dispatch.routing import capacity  # noqa: E402
from billhook.ops import on_cuda  # noqa: E402
from billhook.ops.arguments import MoeGemm  # noqa: E402

GROUPED = parse_name("machete_bf16_u4b8_bf16_bf16_g128_m256n128k64s5_grouped_sm90a")
TOKENS, TOP_K, EXPERTS, N, K = 7, 2, 4, 192, 256
ROWS, BLOCK_M = TOKENS * TOP_K, 256
BLOCKS = capacity(ROWS, EXPERTS, BLOCK_M)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Keep what is launched, in order; every kernel asked for is there."""
    kept: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def listen(name: str) -> Any:
        return lambda *arguments, **named: kept.append((name, arguments, named))

    kernels = SimpleNamespace(
        load=lambda config, device: SimpleNamespace(config=config, kernel=SimpleNamespace(device=device)),
        group=lambda device: "group_rows",
    )
    monkeypatch.setattr(on_cuda, "kernels", lambda: kernels)
    monkeypatch.setattr(on_cuda, "current_stream", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for name in ("launch_gemm", "launch_group"):
        monkeypatch.setattr(on_cuda.launch, name, listen(name))
    return kept


def moe_gemm(config: KernelConfig) -> MoeGemm:
    ids = torch.zeros(BLOCKS * BLOCK_M, dtype=torch.int32)
    return MoeGemm(
        a=torch.zeros((TOKENS, K + 8), dtype=torch.bfloat16)[:, :K],
        codes=torch.zeros(EXPERTS, 1),
        scales=torch.zeros(EXPERTS, 3, 2, 64, dtype=torch.bfloat16),
        n=N,
        group_size=128,
        format="u4b8",
        top_k=TOP_K,
        sorted_token_ids=ids,
        expert_ids=ids.clone(),
        num_tokens_padded=ids.clone(),
        block_m=BLOCK_M,
        complete=True,
        config=config.name,
    )


def test_rows_are_grouped_before_a_gemm_that_wants_them_so(launches: list[Any]) -> None:
    p = moe_gemm(GROUPED)
    on_cuda.moe_gemm_out(p, torch.empty(ROWS, N, dtype=torch.bfloat16))
    (first, (kernel, stream), copy), (second, (*_, tiles_m), gemm) = launches
    assert (first, second, kernel, stream) == ("launch_group", "launch_gemm", "group_rows", 5)
    assert (copy["a"], copy["rows"]) == (p.a.data_ptr(), ROWS)
    assert (copy["row_bytes"], copy["stride_bytes"], copy["top_k"]) == (2 * K, 2 * (K + 8), TOP_K)
    assert copy["sorted_token_ids"] == gemm["sorted_token_ids"] == p.sorted_token_ids.data_ptr()
    assert copy["num_tokens_padded"] == gemm["num_tokens_padded"] == p.num_tokens_padded.data_ptr()
    assert (gemm["a"], gemm["lda"], gemm["k"]) == (copy["grouped"], K, K)
    assert (gemm["m"], gemm["ldd"], tiles_m) == (ROWS, N, BLOCKS)


def test_rows_that_a_kernel_looks_up_stay_where_they_are(launches: list[Any]) -> None:
    p = moe_gemm(replace(GROUPED, grouped=False))
    on_cuda.moe_gemm_out(p, torch.empty(ROWS, N, dtype=torch.bfloat16))
    ((name, _, gemm),) = launches
    assert (name, gemm["a"], gemm["lda"]) == ("launch_gemm", p.a.data_ptr(), K + 8)
