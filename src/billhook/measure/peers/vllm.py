"""vLLM's Marlin, Marlin MoE and Machete, called through the operators of its compiled libraries alone.

The libraries are `_C.abi3.so` and `_moe_C.abi3.so` of a vLLM wheel: in the folder that
`BILLHOOK_PEER_VLLM` names, or of an installed vLLM, which itself is never imported.
Written for vLLM 0.20.2; another release's operators may refuse the arguments, and then say so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights, align_blocks

if TYPE_CHECKING:
    import torch

    Packed = list[tuple[torch.Tensor, torch.Tensor]]  # copies of (codes, scales)

FOLDER_VARIABLE = "BILLHOOK_PEER_VLLM"
# vLLM's 64-bit name of a scalar type, fields from bit 0: exponent (8 bits), mantissa (8), signed (1),
# bias (32), finite values only (1), NaN kind (8; 1 = IEEE). u4b8: 4 mantissa bits, bias 8.
U4B8_ID = 4 << 8 | 8 << 17 | 1 << 50
MOE_BLOCKS = (8, 16, 32, 48, 64)


def find_folder() -> Path:
    """Return the folder of vLLM's libraries.

    Raises:
        UnsupportedError: There is none.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        folder = Path(named)
        if not (folder / "_C.abi3.so").is_file():
            raise UnsupportedError(f"not installed: {FOLDER_VARIABLE}={named} holds no _C.abi3.so")
        return folder
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise UnsupportedError(
            f"not installed: set {FOLDER_VARIABLE} to a folder with a vLLM wheel's _C.abi3.so"
        )
    return Path(spec.origin).parent


@cache
def load(name: str) -> None:
    """Load one of the libraries into torch, once.

    Raises:
        UnsupportedError: It is missing or does not fit this torch.
    """
    import torch

    path = find_folder() / name
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise UnsupportedError(f"not installed: {path} cannot be loaded ({error})") from error


def read_version() -> str:
    """Return the release of the libraries found: of the package, or what a file `VERSION` beside them says.

    Raises:
        UnsupportedError: They are not there.
    """
    folder = find_folder()
    if not os.environ.get(FOLDER_VARIABLE):
        return importlib.metadata.version("vllm")
    note = folder / "VERSION"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def permute_scales(scales: torch.Tensor, whole_k: bool) -> torch.Tensor:
    """Order scales as Marlin reads them.

    A row of 64 columns is an 8 x 8 matrix that group scales transpose. Scales that span all of k
    are applied to the accumulators instead, so they follow those: per 32 columns, lane i of four
    holds the pairs at columns 2i, 2i + 8, 2i + 16 and 2i + 24.

    Args:
        scales: `[groups, n]`.
        whole_k: One group spans all of k.
    """
    n = scales.shape[-1]
    if not whole_k:
        return scales.reshape(-1, 8, 8).transpose(1, 2).reshape(-1, n).contiguous()
    return scales.reshape(-1, 4, 4, 2).transpose(1, 2).reshape(-1, n).contiguous()


class Marlin:
    """Dense Marlin, and Marlin MoE for layers with experts."""

    name = "marlin"

    def version(self) -> str:
        """Return vLLM's release."""
        return read_version()

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Repack the codes and permute the scales, as vLLM does when it loads a GPTQ checkpoint."""
        import torch

        load("_C.abi3.so")
        layer, device = weights.workload, weights.codes.device
        if layer.n % 64 or layer.k % 128:
            raise UnsupportedError(
                f"refused shape: n must be a multiple of 64, k of 128 (got {layer.n} x {layer.k})"
            )
        none = torch.empty(0, dtype=torch.int32, device=device)
        codes = torch.stack(
            [torch.ops._C.gptq_marlin_repack(part, none, layer.k, layer.n, 4, False) for part in weights.gptq]
        )
        whole_k = layer.group_size == -1 or layer.group_size >= layer.k
        scales = torch.stack([permute_scales(part, whole_k) for part in weights.scales])
        count = max(case.copies for case in cases)
        packed = [(codes, scales), *((codes.clone(), scales.clone()) for _ in range(count - 1))]
        sms = torch.cuda.get_device_properties(device).multi_processor_count
        # As vLLM allocates it: one lock per CTA, up to four CTAs per multiprocessor for MoE.
        workspace = torch.zeros(sms * (4 if layer.moe else 1), dtype=torch.int32, device=device)
        if not layer.moe:
            return _bind_dense(layer.n, layer.k, packed, none, workspace)
        load("_moe_C.abi3.so")
        return _bind_moe(layer.n, layer.k, packed, workspace)


def _bind_dense(n: int, k: int, packed: Packed, none: torch.Tensor, workspace: torch.Tensor) -> Bind:
    def bind(inputs: Inputs) -> Launch:
        import torch

        def call(copy: int) -> torch.Tensor:
            codes, scales = packed[copy]
            return torch.ops._C.marlin_gemm(
                inputs.a,
                None,  # output: allocated
                codes[0],
                None,  # bias
                scales[0],
                None,  # activation scales
                None,  # global scale
                none,  # zero points
                none,  # group index (act order)
                none,  # its permutation
                workspace,
                U4B8_ID,
                inputs.problem.m,
                n,
                k,
                True,  # all of k is here
                False,  # atomic add: vLLM's default
                True,  # reduce in float32
                False,  # float zero points
            )

        return Launch(call, "marlin_gemm")

    return bind


def _bind_moe(n: int, k: int, packed: Packed, workspace: torch.Tensor) -> Bind:
    def bind(inputs: Inputs) -> Launch:
        import torch

        problem, device = inputs.problem, inputs.a.device
        if inputs.topk_ids is None:
            raise UnsupportedError("needs routed tokens")
        block = moe_block(problem.rows_per_expert)
        blocks = align_blocks(inputs.topk_ids, problem.num_experts, block)
        rows = inputs.topk_ids.numel()
        # Read only if the product is multiplied by them.
        topk_weights = torch.ones(inputs.topk_ids.shape, dtype=torch.float32, device=device)

        def call(copy: int) -> torch.Tensor:
            codes, scales = packed[copy]
            out = torch.empty((rows, n), dtype=inputs.a.dtype, device=device)
            return torch.ops._moe_C.moe_wna16_marlin_gemm(
                inputs.a,
                out,
                codes,
                None,  # bias
                scales,
                None,  # activation scales
                None,  # global scale
                None,  # zero points
                None,  # group index (act order)
                None,  # its permutation
                workspace,
                blocks.sorted_token_ids,
                blocks.expert_ids,
                blocks.num_tokens_padded,
                topk_weights,
                block,
                problem.top_k,
                False,  # multiply by top-k weights
                U4B8_ID,
                problem.m,
                n,
                k,
                True,  # all of k is here
                False,  # atomic add: vLLM's default
                True,  # reduce in float32
                False,  # float zero points
                -1,  # thread_k: its own choice
                -1,  # thread_n
                -1,  # CTAs per multiprocessor
            )

        return Launch(call, f"moe_wna16_marlin_gemm block {block}")

    return bind


def moe_block(rows_per_expert: float) -> int:
    """Return the block of rows that vLLM chooses: the smallest that a mean expert fills by less than 0.9."""
    return next((block for block in MOE_BLOCKS if rows_per_expert / block < 0.9), MOE_BLOCKS[-1])


class Machete:
    """Dense Machete, its schedule chosen by vLLM's own heuristic."""

    name = "machete"

    def version(self) -> str:
        """Return vLLM's release."""
        return read_version()

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Prepack the codes; scales stay as they are."""
        import torch

        load("_C.abi3.so")
        layer = weights.workload
        if layer.moe:
            raise UnsupportedError("dense layers only")
        if layer.k % 64 or layer.n % 128:
            raise UnsupportedError(
                f"refused shape: n must be a multiple of 128, k of 64 (got {layer.n} x {layer.k})"
            )
        if layer.group_size not in (-1, 64, 128):
            raise UnsupportedError(f"refused group_size {layer.group_size}: -1, 64 and 128 are served")
        a_type = weights.scales.dtype
        columns = weights.gptq[0].t().contiguous().t()
        codes = torch.ops._C.machete_prepack_B(columns, a_type, U4B8_ID, a_type)
        scales = weights.scales[0].contiguous()
        count = max(case.copies for case in cases)
        packed = [(codes, scales), *((_clone_columns(codes), scales.clone()) for _ in range(count - 1))]

        def bind(inputs: Inputs) -> Launch:
            def call(copy: int) -> torch.Tensor:
                codes, scales = packed[copy]
                return torch.ops._C.machete_mm(
                    inputs.a,
                    codes,
                    U4B8_ID,
                    None,  # output type: that of A
                    scales,
                    None,  # zero points
                    layer.group_size,
                    None,  # channel scales
                    None,  # token scales
                    None,  # schedule: its own choice
                )

            return Launch(call, "machete_mm")

        return bind


def _clone_columns(codes: torch.Tensor) -> torch.Tensor:
    """Copy a tensor with its strides, which carry Machete's layout."""
    import torch

    return codes.clone(memory_format=torch.preserve_format)
