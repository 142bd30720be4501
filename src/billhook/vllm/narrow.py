"""Keep only what a tree's run-time selection can reach for given requests.

`requests` turns model configs into the GEMMs they stand for; `narrow` keeps the Marlin kernels that
`host_model` says the tree looks up for them. Machete narrows by its own heuristic (`machete/plan.py`).

Assumptions, besides those of `host_model`:

* A model runs at every parallel size of 1, 2, 4 and 8: its dense layers where they can be split into so many,
  its experts split likewise or dealt out whole.
* Without --formats, weights are stored as the config says; with it, in each of the formats named, with each
  group size of the format unless --group-size names some.
* Without --act, activations have the config's type. 8-bit activations give outputs of that type, or of both
  16-bit types if the config names none.
* Sources built for a target run on every GPU that its machine code or PTX runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .. import arch as archs
from ..arch import Arch
from ..config import parse_types
from ..dtypes import BF16, F16, U4B8, DType
from ..errors import InputError, UnsupportedError
from ..models import Layer, Model, layers, load_model
from ..models.quantization import WeightFormat
from . import host_model
from .host_model import Gemm, Gpu, Lookup, Routing, Tile
from .job import Job, Narrowing
from .marlin_plan import Instantiation, MarlinPlan, group_size
from .release import ACTIVATIONS, Release, matches

PARALLEL_SIZES = (1, 2, 4, 8)
UNLIMITED = 1 << 30  # tokens; far above every size at which the host's choice changes

# Types of weights and scales (after those of activations) -> what releases call the format.
_FORMATS = {
    "u4b8": "gptq-int4",
    "u8b128": "gptq-int8",
    "u4": "awq-int4",
    "u8": "awq-int8",
    "e4m3fn": "fp8",
    "e2m1f_e4m3fn": "nvfp4",
    "e2m1f_e8m0fnu": "mxfp4",
    "e4m3fn_e8m0fnu": "mxfp8",
}
_DTYPES = {"float16": "f16", "bfloat16": "bf16"}
_ACTS = {"f16": F16, "bf16": BF16}
_WEIGHT_BITS = {"kU4": 4, "kU4B8": 4, "kFE2M1f": 4, "kU8B128": 8, "kFE4M3fn": 8}


@dataclass(frozen=True)
class Request:
    """One GEMM that must be served, for every number of tokens up to a maximum.

    Args:
        name: Model, tensor-parallel size and layer.
        n: Output features.
        k: Input features.
        format: Weight format.
        activation: A key of `release.ACTIVATIONS`.
        output: "f16" or "bf16".
        group_size: Weights along k that share a scale, -1 for channel scales; None for any the format has.
        max_tokens: Most tokens of one step.
        num_experts: Experts held by one GPU; 0 for a dense layer.
        top_k: Experts that the router gives each token; 0 for a dense layer.
    """

    name: str
    n: int
    k: int
    format: str
    activation: str
    output: str
    group_size: int | None
    max_tokens: int
    num_experts: int = 0
    top_k: int = 0

    @property
    def routing(self) -> Routing | None:
        """How tokens are spread over the experts; None for a dense layer."""
        return Routing(self.num_experts, self.top_k) if self.num_experts else None


def check(narrowing: Narrowing, release: Release) -> None:
    """Refuse names that the release does not know.

    Raises:
        InputError: An unknown format, activation or group size; the message lists those that exist.
    """
    from .machete.plan import load_catalog

    known = [form.name for form in release.marlin.formats] + [one.format for one in load_catalog().types]
    _refuse_unknown("--formats", narrowing.formats, known)
    _refuse_unknown("--act", narrowing.activations, ACTIVATIONS)
    sizes = {group_size(blocks) for form in release.marlin.formats for blocks in form.group_blocks}
    _refuse_unknown("--group-size", map(str, narrowing.group_sizes), map(str, sorted(sizes)))


def requests(narrowing: Narrowing) -> list[Request] | None:
    """Return the GEMMs that the narrowing's models stand for; None if it names none, and any shape may come.

    Raises:
        ConfigError: A config cannot be read.
        UnsupportedError: A model that is not built yet; its weights' format does not matter if one is given.
    """
    if not narrowing.models:
        return None
    found: dict[Request, None] = {}
    for path in narrowing.models:
        model = _load(path, narrowing)
        for size in PARALLEL_SIZES:
            found.update(dict.fromkeys(_requests(model, size, narrowing)))
    return list(found)


def narrow(full: MarlinPlan, job: Job) -> MarlinPlan:
    """Keep the kernels of a Marlin folder that the job's requests can reach.

    Args:
        full: The plan for the job's targets.
        job: Its narrowing says which requests come.

    Raises:
        InputError: A name that the release does not know.
    """
    asked = requests_of(job)
    if asked is None:
        kept = {kernel for kernel in full.kernels if why_unwanted(kernel, job.narrowing) is None}
    else:
        reach = Reach(full.kernels, job.release, job.archs)
        kept = {kernel for request in asked for kernel in reach.of(request)}
    return full.narrowed(kept.__contains__)


def requests_of(job: Job) -> list[Request] | None:
    """Return the requests that a Marlin folder must serve: dense or MoE; None if any shape may come.

    Raises:
        InputError: A name that the release does not know.
    """
    check(job.narrowing, job.release)
    asked = requests(job.narrowing)
    if asked is None:
        return None
    return [one for one in asked if bool(one.num_experts) == (job.family == "marlin-moe")]


class Reach:
    """Answers which kernels the host looks up for a request.

    Args:
        kernels: The full set.
        release: The tree's release.
        targets: What is built for; every GPU that it runs on counts.
    """

    def __init__(self, kernels: Iterable[Instantiation], release: Release, targets: Sequence[Arch]) -> None:
        self.release = release
        self.capabilities = _capabilities(targets)
        self.kernels: dict[tuple[str, str, str, int, int], dict[Lookup, Instantiation]] = {}
        for kernel in kernels:
            key = (kernel.format, kernel.a, kernel.c, kernel.group_blocks, kernel.stages)
            self.kernels.setdefault(key, {})[_lookup(kernel)] = kernel

    def of(self, request: Request) -> set[Instantiation]:
        """Return the kernels that are looked up for a request on some GPU."""
        a, c = ACTIVATIONS[request.activation], ACTIVATIONS[request.output]
        found: set[Instantiation] = set()
        for gemm in gemms(request, self.release):
            for capability in self.capabilities:
                gpu = _gpu(capability)
                candidates = self.kernels.get((request.format, a, c, gemm.group_blocks, gpu.stages), {})
                if candidates and _runs(self.release, a, capability):
                    found.update(map(candidates.__getitem__, _looked_up(request, gemm, gpu, candidates)))
        return found


def _looked_up(
    request: Request, gemm: Gemm, gpu: Gpu, candidates: dict[Lookup, Instantiation]
) -> Iterable[Lookup]:
    exists = candidates.__contains__
    if request.routing:
        return host_model.moe(gemm, request.max_tokens, request.routing, gpu, exists)
    return host_model.dense(gemm, request.max_tokens, gpu, exists)


def why_unwanted(kernel: Instantiation, narrowing: Narrowing) -> str | None:
    """Return why a narrowing without models leaves a kernel out, in words; None if some shape reaches it."""
    if narrowing.formats and kernel.format not in narrowing.formats:
        return f"--formats leaves out {kernel.format}"
    if narrowing.activations and kernel.a not in {ACTIVATIONS[name] for name in narrowing.activations}:
        return f"--act leaves out {kernel.activation}"
    if narrowing.group_sizes and kernel.group_size not in narrowing.group_sizes:
        return f"--group-size leaves out {kernel.group_size}"
    tokens = narrowing.max_tokens or UNLIMITED
    if kernel.thread_m_blocks > max(most_m_blocks(tokens, None), most_m_blocks(tokens, Routing(1, 1))):
        return f"--max-tokens {narrowing.max_tokens} never fills {kernel.thread_m_blocks} blocks of rows"
    return None


def most_m_blocks(tokens: int, routing: Routing | None) -> int:
    """Return the most blocks of rows of a tile for `tokens` tokens, whatever the shape.

    Args:
        tokens: Tokens of one step.
        routing: How an MoE layer spreads them; None for a dense layer.
    """
    if routing is None:
        return min(-(-tokens // host_model.M_BLOCK), host_model.MAX_M_BLOCKS)
    return -(-host_model.moe_block_size(tokens, routing, 16) // host_model.M_BLOCK)


def _load(path: Path, narrowing: Narrowing) -> Model:
    if narrowing.formats:
        return load_model(path, WeightFormat(U4B8, -1))  # its shapes alone count
    try:
        return load_model(path)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error} (with --formats, only the config's shapes are read)") from error


def _requests(model: Model, size: int, narrowing: Narrowing) -> Iterator[Request]:
    dtype = _DTYPES.get(model.dtype)
    act = _ACTS[dtype] if dtype else F16 if narrowing.activations else None
    for layer in _split(model, size, act):
        if layer.ordered and not narrowing.formats:
            raise UnsupportedError(
                f"{layer.id} is in act-order (desc_act = true), whose kernels are not told apart yet; "
                "name what to keep with --formats"
            )
        formats = narrowing.formats or (_FORMATS[_stored(layer)],)
        groups: Sequence[int | None] = narrowing.group_sizes
        if not groups:
            groups = (None,) if narrowing.formats else (layer.group_size,)
        for form in formats:
            for activation, output in _activations(dtype, narrowing.activations):
                for group in groups:
                    for experts in _expert_counts(layer):
                        yield Request(
                            layer.id,
                            layer.n,
                            layer.k,
                            form,
                            activation,
                            output,
                            group,
                            narrowing.max_tokens or UNLIMITED,
                            experts,
                            layer.top_k * layer.rows_per_token,
                        )


def _stored(layer: Layer) -> str:
    types = parse_types(layer.types)
    return str(types.b) if types.s == types.a else f"{types.b}_{types.s}"


def _split(model: Model, size: int, act: DType | None) -> list[Layer]:
    """Return the layers of a model at a parallel size, as far as they can be split into so many."""
    views = [model]
    if model.experts and size > 1:  # experts that are dealt out whole put no limit on how attention is split
        alone = replace(model, experts=None)
        views += [alone, replace(alone, intermediate_size=model.experts.shared_intermediate_size)]
    found: dict[Layer, None] = {}
    for view in views:
        try:
            found.update(dict.fromkeys(layers(view, size, act)))
        except UnsupportedError:
            if size == 1:
                raise
    return [layer for layer in found if layer.n and layer.k]  # a model may have no dense MLP


def _activations(dtype: str | None, wanted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give (activation, output) for each activation asked for, or for the model's own."""
    for name in wanted or ([dtype] if dtype else []):
        if name in _ACTS:
            yield name, name
        else:
            yield from ((name, output) for output in ([dtype] if dtype else _ACTS))


def _expert_counts(layer: Layer) -> list[int]:
    """Return how many experts a GPU may hold: all, or its part of them; [0] for a dense layer."""
    total = layer.num_experts
    return (
        list(dict.fromkeys(total // size for size in PARALLEL_SIZES if total % size == 0)) if total else [0]
    )


def gemms(request: Request, release: Release) -> Iterator[Gemm]:
    """Give the request's GEMM, as the host sees it, at each group size that it may have."""
    a = ACTIVATIONS[request.activation]
    for form in release.marlin.formats:
        if form.name != request.format or not any(pair[0] == a for pair in form.types):
            continue
        sizes = [group_size(blocks) for blocks in form.group_blocks]
        for size in sizes if request.group_size is None else [request.group_size]:
            if size <= 0 or request.k % size == 0:
                a_bits = 8 if a in ("kS8", "kFE4M3fn") else 16
                yield Gemm(
                    request.n, request.k, a_bits, _WEIGHT_BITS[form.weight], size, form.weight == "kU4"
                )


def _lookup(kernel: Instantiation) -> Lookup:
    tile = Tile(kernel.thread_k_blocks * 16, kernel.thread_n_blocks * 16, kernel.threads)
    return Lookup(tile, kernel.thread_m_blocks, kernel.m_block_size_8)


@cache
def _gpu(capability: tuple[int, int]) -> Gpu:
    return Gpu(Arch(*capability).limits.smem_per_cta, 2 if capability == (7, 5) else 4)


def _capabilities(targets: Sequence[Arch]) -> list[tuple[int, int]]:
    """Return the compute capabilities of the GPUs that code for these targets runs on."""
    found = []
    for one in (archs.parse(name).capability for name in archs.supported()):
        names = {one, (10, 1)} if one == (11, 0) else {one}  # CUDA 12 called 11.0 by another number
        for target in targets:
            if any(target.runs_on(name) or (target.ptx and name >= target.capability) for name in names):
                found.append(one)
                break
    return found


def _runs(release: Release, a: str, capability: tuple[int, int]) -> bool:
    """Whether the host accepts an activation type on a GPU: it refuses FP8 where there is no such mma."""
    return a != release.marlin.fp8.activation or matches(capability, release.marlin.fp8.archs)


def _refuse_unknown(option: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(dict.fromkeys(known))
    for name in given:
        if name not in known:
            raise InputError(f"{option} {name} is not known; known are {', '.join(known)}")
