"""Humming (`humming-kernels`), tiles chosen by its own heuristics, indexed MoE.

Written for 0.1.19. It compiles a kernel per layer shape when first asked, so only the
token ranges that will be measured are compiled.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...dtypes import BF16, E2M1F, E4M3FN, E8M0FNU, F16, S8, U4, U4B8, U8, U8B128, DType
from ...errors import UnsupportedError
from ..contestant import Bind, Launch
from ..inputs import Inputs, Weights, align_blocks, pack_words, torch_dtype
from ..roofline import rows_out
from ..workload import Workload

if TYPE_CHECKING:
    import torch

PACKAGE = "humming-kernels"
LOCKS = 2048  # int32 zeros for its stream-K, as its own layer allocates them
DTYPES: dict[DType, str] = {
    F16: "float16",
    BF16: "bfloat16",
    S8: "int8",
    U4: "uint4",
    U4B8: "uint4",
    U8: "uint8",
    U8B128: "uint8",
    E4M3FN: "float8e4m3",
    E2M1F: "float4e2m1",
    E8M0FNU: "float8e8m0",
}


class Humming:
    """Dense and indexed MoE products."""

    name = "humming"

    def version(self) -> str:
        """Return the package's version."""
        if importlib.util.find_spec("humming") is None:
            raise UnsupportedError(f"not installed: pip install {PACKAGE}")
        try:
            return importlib.metadata.version(PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def prepare(self, weights: Weights, cases: Sequence[Inputs]) -> Bind:
        """Transform the weights into its layout and compile the kernels that the cases need."""
        self.version()
        if weights.workload.held.folded:
            raise UnsupportedError("no weights whose scales are folded, rounded to e4m3 (w4a8)")
        import torch
        from humming.kernel.humming import HummingKernel
        from humming.schema import HummingInputSchema, HummingWeightSchema
        from humming.transform import prepare_and_transform_humming_tensors
        from humming.tune import get_heuristics_config

        layer, device = weights.workload, weights.codes.device
        config, tensors = prepare_and_transform_humming_tensors(
            _tensors(weights),
            shape_n=layer.n,
            shape_k=layer.k,
            weight_schema=HummingWeightSchema(**_schema(layer)),
            input_schema=HummingInputSchema(a_dtype=DTYPES[layer.types.a]),
            num_experts=layer.num_experts,
            torch_dtype=torch_dtype(layer.types.c),
            device=device,
        )
        compute = {
            "use_f16_accum": False,
            "use_batch_invariant": False,
            "gemm_type": "indexed" if layer.moe else "dense",
        }
        # (rows above, rows up to, tile): it looks up row 1 too, to learn the kind of product.
        rows = {1, *(rows_out(case.problem) for case in cases)}
        every = get_heuristics_config(config, **compute, device=device)
        ranges = [one for one in every if any(one[0] < row <= one[1] for row in rows)]
        texts = json.dumps(compute), json.dumps(ranges)
        HummingKernel.prepare_kernels(config.to_str(), *texts, device)  # compiles in parallel, on all cores
        count = max(case.copies for case in cases)
        packed = [tensors, *({name: t.clone() for name, t in tensors.items()} for _ in range(count - 1))]
        locks = torch.zeros(LOCKS, dtype=torch.int32, device=device)
        return _bind(config, texts, ranges, packed, locks)


def _schema(layer: Workload) -> dict[str, Any]:
    """Return how weights are stored, in its terms; integers without zero points are offset binary to it."""
    schema = {
        "b_dtype": DTYPES[layer.types.b],
        "bs_dtype": DTYPES[layer.types.s],
        "weight_scale_group_size": max(0, layer.group_size),
        "has_zero_point": layer.types.b.zero_point,
    }
    return schema | ({"weight_scale_2_type": "tensor"} if layer.held.global_scale else {})


def _tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the weights as its schema has them: words and scales `[n, ..]`, zero points packed along n."""
    import torch

    layer, scales = weights.workload, weights.scales.mT.contiguous()
    if layer.held.scale is not None:
        scales = scales.view(getattr(torch, f"float8_{layer.types.s.name}"))
    tensors = {"weight": weights.words.mT.contiguous(), "weight_scale": scales}
    if weights.zeros is not None:
        tensors["zero_point"] = pack_words(weights.zeros.mT, layer.types.b.bits)
    if not layer.moe:
        tensors = {name: tensor[0] for name, tensor in tensors.items()}
    if weights.global_scales is not None:
        tensors["weight_scale_2"] = weights.global_scales
    return tensors


def _bind(
    config: Any,
    texts: tuple[str, str],
    ranges: list[Any],
    packed: list[dict[str, torch.Tensor]],
    locks: torch.Tensor,
) -> Bind:
    def bind(inputs: Inputs) -> Launch:
        import torch
        from humming.forward import humming_forward

        problem, rows = inputs.problem, rows_out(inputs.problem)
        tuning = next((one[2] for one in ranges if one[0] < rows <= one[1]), None)
        if tuning is None:
            raise UnsupportedError(f"refused {rows} rows: its heuristics end before")
        routed: dict[str, Any] = {}
        if inputs.topk_ids is not None:
            blocks = align_blocks(inputs.topk_ids, problem.num_experts, tuning["block_shape"][0])
            routed = {
                "sorted_ids": blocks.sorted_token_ids,
                "expert_ids": blocks.expert_ids,
                "num_tokens_padded": blocks.num_tokens_padded,
                "top_k": problem.top_k,
                "valid_shape_m": rows,
            }

        def call(copy: int) -> torch.Tensor:
            out = torch.empty((rows, problem.n), dtype=torch_dtype(problem.types.c), device=inputs.a.device)
            return humming_forward(
                config,
                inputs=inputs.a,
                **packed[copy],
                outputs=out,
                input_scale=inputs.token_scales,
                locks=locks,
                compute_config=texts[0],
                tuning_config=texts[1],
                **routed,
            )

        shape = "x".join(str(size) for size in tuning["block_shape"])
        return Launch(call, f"humming {shape} {tuning.get('mma_type', '')}".rstrip())

    return bind
