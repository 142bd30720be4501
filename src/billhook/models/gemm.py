"""The GEMMs of a decoder layer, as engines issue them on one GPU of a tensor-parallel group.

Projections that read the same input are one GEMM (qkv, gate_up, w13). Column-parallel weights (qkv, gate_up,
w13) are split along n, row-parallel ones (o, down, w2) along k. Key and value heads are replicated where
there are fewer of them than GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import UnsupportedError
from .model import Experts, Model
from .quantization import WeightFormat


@dataclass(frozen=True)
class Gemm:
    """A GEMM of one decoder layer before it is known how its modules are stored.

    Args:
        name: Its place: qkv, o, gate_up, down, w13, w2, shared_gate_up, shared_down; or q, k, v, gate, up and
            shared_gate, shared_up where those are not fused.
        n: Output features on one GPU, of one expert.
        k: Input features on one GPU.
        modules: Full names of the modules whose weights it multiplies.
        row_parallel: Whether tensor parallelism splits k, not n.
        bias: Whether a bias is added.
        num_experts: As `Layer.num_experts`.
        top_k: As `Layer.top_k`.
        rows_per_token: As `Layer.rows_per_token`.
    """

    name: str
    n: int
    k: int
    modules: tuple[str, ...]
    row_parallel: bool
    bias: bool = False
    num_experts: int = 0
    top_k: int = 0
    rows_per_token: int = 1


def gemms(model: Model, index: int, tp: int, *, fused: bool = True) -> Iterator[Gemm]:
    """Yield the GEMMs of decoder layer `index` on one of `tp` GPUs.

    Args:
        model: From `load_model`.
        index: Number of the decoder layer.
        tp: Tensor-parallel size.
        fused: Whether q, k and v are one GEMM, and gate and up, as engines have it; experts always are.

    Raises:
        UnsupportedError: The layer cannot be split into `tp`.
    """
    place = f"model.layers.{index}"
    heads = _share(model, "attention heads", model.num_heads, tp)
    if model.num_kv_heads % tp and tp % model.num_kv_heads:
        raise _unsplittable(model, "key and value heads", model.num_kv_heads, tp)
    kv_heads = max(1, model.num_kv_heads // tp)
    attention, biases, dim = f"{place}.self_attn", model.biases, model.head_dim
    whole = Gemm("qkv", (heads + 2 * kv_heads) * dim, model.hidden_size, (), False, biases.qkv)
    sizes = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
    yield from _column_parallel(whole, attention, "", sizes, fused)
    yield Gemm("o", model.hidden_size, heads * dim, (f"{attention}.o_proj",), True, biases.o)
    if model.experts is None or index not in model.experts.layers:
        yield from _mlp(model, "", f"{place}.mlp", model.intermediate_size, tp, fused=fused)
        return
    yield from _routed(model, model.experts, place, tp)
    if model.experts.shared_intermediate_size:
        inner = model.experts.shared_intermediate_size
        yield from _mlp(model, "shared_", f"{place}.mlp.shared_expert", inner, tp, fused=fused)


def _mlp(
    model: Model, prefix: str, place: str, intermediate_size: int, tp: int, *, fused: bool
) -> Iterator[Gemm]:
    inner = _share(model, f"{prefix}intermediate features", intermediate_size, tp)
    whole = Gemm(f"{prefix}gate_up", 2 * inner, model.hidden_size, (), False, model.biases.mlp)
    yield from _column_parallel(whole, place, prefix, {"gate": inner, "up": inner}, fused)
    yield Gemm(f"{prefix}down", model.hidden_size, inner, (f"{place}.down_proj",), True, model.biases.mlp)


def _column_parallel(
    whole: Gemm, place: str, prefix: str, sizes: Mapping[str, int], fused: bool
) -> Iterator[Gemm]:
    """Yield the GEMM of projections that read the same input, or one for each.

    Args:
        whole: All of them as one, but for its modules.
        place: Where their modules are.
        prefix: Of their own names.
        sizes: Projection -> output features, in order.
        fused: Whether they are one.
    """
    modules = {name: f"{place}.{name}_proj" for name in sizes}
    if fused:
        yield replace(whole, modules=tuple(modules.values()))
        return
    for name, n in sizes.items():
        yield replace(whole, name=f"{prefix}{name}", n=n, modules=(modules[name],))


def _routed(model: Model, experts: Experts, place: str, tp: int) -> Iterator[Gemm]:
    """Yield the two GEMMs of the routed experts; the second has one row per (token, expert) pair."""
    inner = _share(model, "intermediate features of an expert", experts.intermediate_size, tp)
    gate, up, down = experts.modules
    numbers = [""] if experts.stacked else [f"{expert}." for expert in range(experts.num_experts)]
    all_of = [f"{place}.{experts.place}.{number}" for number in numbers]
    inputs = (gate,) if experts.stacked else (gate, up)
    yield Gemm(
        "w13",
        n=2 * inner,
        k=model.hidden_size,
        modules=tuple(f"{one}{name}" for one in all_of for name in inputs),
        row_parallel=False,
        bias=experts.bias,
        num_experts=experts.num_experts,
        top_k=experts.top_k,
    )
    yield Gemm(
        "w2",
        n=model.hidden_size,
        k=inner,
        modules=tuple(f"{one}{down}" for one in all_of),
        row_parallel=True,
        bias=experts.bias,
        num_experts=experts.num_experts,
        top_k=1,
        rows_per_token=experts.top_k,
    )


def _share(model: Model, what: str, total: int, tp: int) -> int:
    if total % tp:
        raise _unsplittable(model, what, total, tp)
    return total // tp


def _unsplittable(model: Model, what: str, total: int, tp: int) -> UnsupportedError:
    return UnsupportedError(f"{model.name}: {total} {what} cannot be split over tensor-parallel size {tp}")


def check_gemm(model: str, gemm: Gemm, stored: WeightFormat, tp: int) -> None:
    """Refuse to cut a group of weights that share a scale, and orders of features that no GEMM can have.

    Args:
        model: The model's name, for the message.
        gemm: The GEMM.
        stored: How its weights are stored.
        tp: Tensor-parallel size.

    Raises:
        UnsupportedError: Each GPU's share of k is no whole number of groups, or act-order mixes those shares,
            or the experts of a layer have orders of their own.
    """
    split = tp > 1 and gemm.row_parallel
    if split and stored.group_size > 0 and gemm.k % stored.group_size:
        raise UnsupportedError(
            f"{model}: tensor-parallel size {tp} gives {gemm.name} k = {gemm.k}, which is not a "
            f"multiple of group_size {stored.group_size}; a group cannot be split"
        )
    if stored.ordered and split:
        raise UnsupportedError(
            f"{model}: tensor-parallel size {tp} splits {gemm.name} along k, whose order act-order "
            "(desc_act = true) changes; it can be served by one GPU"
        )
    if stored.ordered and gemm.num_experts:
        raise UnsupportedError(
            f"{model}: {gemm.name} has experts in act-order (desc_act = true), each in an order of its "
            "own, but they read the same activations; it is not built"
        )
