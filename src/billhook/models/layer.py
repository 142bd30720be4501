"""The quantized GEMMs of a model, as an inference engine issues them on one GPU of a tensor-parallel group.

Projections that read the same input are one GEMM (qkv, gate_up, w13). Column-parallel weights (qkv, gate_up,
w13) are split along n, row-parallel ones (o, down, w2) along k. Key and value heads are replicated where
there are fewer of them than GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import GemmTypes, Problem, parse_types
from ..dtypes import BF16, F16, DType
from ..errors import ConfigError, InputError, UnsupportedError
from .model import Experts, Model
from .quantization import WeightFormat


@dataclass(frozen=True)
class Layer:
    """One quantized GEMM of a model on one GPU.

    Args:
        model: The model's name.
        tp: Tensor-parallel size.
        name: Its place: qkv, o, gate_up, down, w13, w2, shared_gate_up, shared_down; followed by the group
            size (`qkv_g32`) where a model has it in several.
        n: Output features on one GPU, of one expert.
        k: Input features on one GPU.
        types: `str(GemmTypes)`.
        group_size: Weights along k that share a scale; -1 for channel scales.
        count: How many decoder layers have it.
        num_experts: 0 for a dense layer.
        top_k: Experts that each row visits; 0 for a dense layer.
        rows_per_token: Rows of A for each token: the model's top_k for w2, whose input is one row per
            (token, expert) pair, else 1.
        bias: Whether a bias is added.
        ordered: Whether activations are brought into another order of features before it (act-order).
    """

    model: str
    tp: int
    name: str
    n: int
    k: int
    types: str
    group_size: int
    count: int
    num_experts: int = 0
    top_k: int = 0
    rows_per_token: int = 1
    bias: bool = False
    ordered: bool = False

    @property
    def id(self) -> str:
        """Its name in a plan: `MODEL/tpTP/NAME`."""
        return f"{self.model}/tp{self.tp}/{self.name}"

    def problem(self, tokens: int) -> Problem:
        """Return the GEMM that a step of `tokens` tokens issues."""
        return Problem(
            m=tokens * self.rows_per_token,
            n=self.n,
            k=self.k,
            types=parse_types(self.types),
            group_size=self.group_size,
            num_experts=self.num_experts,
            top_k=self.top_k,
        )


@dataclass(frozen=True)
class Gemm:
    """A GEMM of one decoder layer before it is known how its modules are stored.

    Args:
        name: As `Layer.name`.
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


_ACTIVATIONS = {"float16": F16, "bfloat16": BF16}


def layers(model: Model, tp: int = 1, act: DType | None = None) -> list[Layer]:
    """Return every quantized GEMM of a model, in the order of a decoder layer.

    Args:
        model: From `load_model`.
        tp: Tensor-parallel size.
        act: Activations' type, of 16 or 8 bits; what the model's config says if None.

    Raises:
        ConfigError: No layer is quantized, or the activations' type is neither given nor known.
        UnsupportedError: The model cannot be split into `tp`, or a layer's format is not built yet.
    """
    if tp < 1:
        raise InputError(f"the tensor-parallel size must be at least 1 (got {tp})")
    act, output = choose_types(act, model.file, model.dtype)
    counts: Counter[tuple[Gemm, WeightFormat]] = Counter()
    for index in range(model.num_layers):
        for gemm in gemms(model, index, tp):
            stored = model.quantization.stored(gemm.modules)
            if stored is not None:
                check_gemm(model.name, gemm, stored, tp)
                counts[replace(gemm, modules=()), replace(stored, activations=None)] += 1
    if not counts:
        raise ConfigError(f"{model.file}: no layer is quantized, by its quantization_config; nothing to plan")
    variants: dict[str, set[WeightFormat]] = {}
    for gemm, stored in counts:
        variants.setdefault(gemm.name, set()).add(stored)
    in_order = sorted(
        counts.items(), key=lambda item: (_ORDER.index(item[0][0].name), *_suffixes(item[0][1]))
    )
    return [
        Layer(
            model=model.name,
            tp=tp,
            name=_name(gemm, stored, variants[gemm.name]),
            n=gemm.n,
            k=gemm.k,
            types=str(gemm_types(act, stored, output)),
            group_size=stored.group_size,
            count=count,
            num_experts=gemm.num_experts,
            top_k=gemm.top_k,
            rows_per_token=gemm.rows_per_token,
            bias=gemm.bias,
            ordered=stored.ordered,
        )
        for (gemm, stored), count in in_order
    ]


def _name(gemm: Gemm, stored: WeightFormat, variants: set[WeightFormat]) -> str:
    """Return a GEMM's name, with what tells it from the others of that name behind it."""
    parts = zip(_suffixes(stored), zip(*map(_suffixes, variants), strict=True), strict=True)
    return "".join([gemm.name, *(f"_{one[1]}" for one, all_of in parts if len(set(all_of)) > 1)])


def _suffixes(stored: WeightFormat) -> tuple[tuple[int, str], ...]:
    """Return what may tell formats of one GEMM apart: keys to sort by, and how names spell them."""
    return (
        (stored.weight.bits, f"{stored.weight}"),
        (stored.group_size, f"g{stored.group_size}"),
        (int(stored.ordered), "ordered" if stored.ordered else "plain"),
        (int(stored.packed.folded), "folded" if stored.packed.folded else "exact"),
    )


def gemm_types(act: DType, stored: WeightFormat, output: DType) -> GemmTypes:
    """Return the types of the GEMM of activations of type `act` and a weight.

    Folded weights are not multiplied by activations of 16 bits, but by those quantized to 8.
    """
    held = stored.packed
    if held.folded and act.bits == 16:
        (act,) = held.narrow_activations
    return GemmTypes(act, stored.weight, stored.scale or output, output)


def choose_types(act: DType | None, file: Path, dtype: str) -> tuple[DType, DType]:
    """Return the types of activations and output, which are one unless activations have 8 bits.

    Args:
        act: Activations' type; what the config says if None. Beside 8-bit ones the output has the config's.
        file: The config.
        dtype: As `read_dtype` returns it.

    Raises:
        ConfigError: The config is asked, and names no type that kernels have.
    """
    if act is not None and act.bits == 16:
        return act, act
    own = activations_type(file, dtype)
    return act or own, own


_ORDER = ("qkv", "o", "gate_up", "down", "w13", "w2", "shared_gate_up", "shared_down")


def activations_type(file: Path, dtype: str) -> DType:
    """Return the activations' type that a model's config names.

    Args:
        file: The config.
        dtype: As `read_dtype` returns it.

    Raises:
        ConfigError: It names none that kernels take.
    """
    if dtype not in _ACTIVATIONS:
        raise ConfigError(
            f"{file}: field dtype (or torch_dtype) must be float16 or bfloat16 (got {dtype!r}); "
            "or choose the activations' type (--act f16, --act bf16)"
        )
    return _ACTIVATIONS[dtype]


def gemms(model: Model, index: int, tp: int) -> Iterator[Gemm]:
    """Yield the GEMMs of decoder layer `index` on one of `tp` GPUs.

    Raises:
        UnsupportedError: The layer cannot be split into `tp`.
    """
    place = f"model.layers.{index}"
    heads = _share(model, "attention heads", model.num_heads, tp)
    if model.num_kv_heads % tp and tp % model.num_kv_heads:
        raise _unsplittable(model, "key and value heads", model.num_kv_heads, tp)
    kv_heads = max(1, model.num_kv_heads // tp)
    attention, biases = f"{place}.self_attn", model.biases
    yield Gemm(
        "qkv",
        n=(heads + 2 * kv_heads) * model.head_dim,
        k=model.hidden_size,
        modules=tuple(f"{attention}.{name}_proj" for name in "qkv"),
        row_parallel=False,
        bias=biases.qkv,
    )
    yield Gemm("o", model.hidden_size, heads * model.head_dim, (f"{attention}.o_proj",), True, biases.o)
    if model.experts is None or index not in model.experts.layers:
        yield from _mlp(model, "", f"{place}.mlp", model.intermediate_size, tp)
        return
    yield from _routed(model, model.experts, place, tp)
    if model.experts.shared_intermediate_size:
        yield from _mlp(
            model, "shared_", f"{place}.mlp.shared_expert", model.experts.shared_intermediate_size, tp
        )


def _mlp(model: Model, prefix: str, place: str, intermediate_size: int, tp: int) -> Iterator[Gemm]:
    inner = _share(model, f"{prefix}intermediate features", intermediate_size, tp)
    gate_up = (f"{place}.gate_proj", f"{place}.up_proj")
    yield Gemm(f"{prefix}gate_up", 2 * inner, model.hidden_size, gate_up, False, model.biases.mlp)
    yield Gemm(f"{prefix}down", model.hidden_size, inner, (f"{place}.down_proj",), True, model.biases.mlp)


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
