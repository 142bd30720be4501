"""What a request needs: its layers, the kernels that serve them, and which row counts go to which kernel.

A plan is plain data (text and whole numbers): `to_json` and `from_json` move it into bundles and to
other programs. `docs/plan-json.md` describes the JSON. Equal requests give equal plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby

import msgspec

from .arch import Arch, parse
from .catalog import Catalog, Shape, load
from .config import KernelConfig, Problem, parse_name, parse_types
from .dtypes import DType
from .errors import ConfigError, InputError, UnsupportedError
from .families import MULTIPROCESSORS
from .models import KEPT_WIDE, Layer, Model, NarrowActivations, find_layers
from .select import Kept, Span, Stretch, join, select, stretches
from .thin import keep_few

_Key = tuple[int, int, str, int, int, int]  # n, k, types, group_size, num_experts, top_k

FORMAT = 1  # of the JSON; raised when a reader of the old one would go wrong
DEFAULT_MAX_TOKENS = 8192


@dataclass(frozen=True)
class Need:
    """Why a kernel is in the plan.

    Args:
        layer: `Layer.id` of the layer that it serves.
        first: Smallest number of tokens.
        last: Largest number of tokens.
    """

    layer: str
    first: int
    last: int


@dataclass(frozen=True)
class PlannedKernel:
    """A kernel to be built.

    Args:
        name: `KernelConfig.name`.
        arch: The GPU target, such as `9.0a` or `9.0+PTX`.
        reason: The rules that chose it, in words.
        needed_by: Layers and token counts that it serves.
    """

    name: str
    arch: str
    reason: str
    needed_by: tuple[Need, ...]

    @property
    def config(self) -> KernelConfig:
        """The kernel's compile-time constants."""
        return replace(parse_name(self.name), arch=parse(self.arch))


@dataclass(frozen=True)
class Range:
    """Consecutive row counts m (`Problem.m`) and the kernel that serves them.

    Args:
        first: Smallest m.
        last: Largest m.
        kernel: `KernelConfig.name`.
    """

    first: int
    last: int
    kernel: str


@dataclass(frozen=True)
class Dispatch:
    """Which kernel serves which m of one class of problems on one GPU target.

    Args:
        arch: The GPU target, as in `PlannedKernel.arch`.
        n: Output features.
        k: Input features.
        types: `str(GemmTypes)`.
        group_size: Weights along k that share a scale; -1 for channel scales.
        num_experts: 0 for dense layers.
        top_k: 0 for dense layers.
        ranges: From m = 1 on, in order, without a gap.
    """

    arch: str
    n: int
    k: int
    types: str
    group_size: int
    num_experts: int
    top_k: int
    ranges: tuple[Range, ...]

    def serves(self, problem: Problem, capability: tuple[int, int]) -> bool:
        """Whether this entry is for the problem's class and for a GPU of `capability`."""
        return self.key == _key(problem) and parse(self.arch).runs_on(capability)

    @property
    def key(self) -> _Key:
        """The problem class: n, k, types, group_size, num_experts, top_k."""
        return (self.n, self.k, self.types, self.group_size, self.num_experts, self.top_k)

    def kernel(self, m: int) -> str:
        """Return the name of the kernel for `m` rows; beyond the last range, that of the last range.

        Raises:
            InputError: m is less than 1.
        """
        if m < 1:
            raise InputError(f"m must be at least 1 (got {m})")
        return next((one.kernel for one in self.ranges if m <= one.last), self.ranges[-1].kernel)


@dataclass(frozen=True)
class Plan:
    """What a request needs.

    Args:
        format: Version of this structure.
        archs: GPU targets.
        max_tokens: Token counts 1 to this are served.
        layers: Every quantized GEMM, by model, tensor-parallel size and place in the model.
        kernels: To be built, by GPU target, then in the order in which layers need them.
        dispatch: Per GPU target and problem class.
        notes: What the reader of the plan should know, in words.
        multiprocessors: Of the GPU that tiles were chosen for; others run them too.
    """

    format: int
    archs: tuple[str, ...]
    max_tokens: int
    layers: tuple[Layer, ...]
    kernels: tuple[PlannedKernel, ...]
    dispatch: tuple[Dispatch, ...]
    notes: tuple[str, ...] = ()
    multiprocessors: int = MULTIPROCESSORS


def make_plan(
    models: Iterable[Model],
    archs: Iterable[Arch],
    max_tokens: int = DEFAULT_MAX_TOKENS,
    tps: Iterable[int] = (1,),
    act: DType | None = None,
    *,
    narrow_activations: NarrowActivations = False,
    fused: bool = True,
    within: float = 0.0,
    catalog: Catalog | None = None,
) -> Plan:
    """Plan the kernels for models.

    Args:
        models: From `load_model`.
        archs: GPU targets.
        max_tokens: Serve every token count from 1 to this.
        tps: Tensor-parallel sizes.
        act: Activations' type; what each model's config says if None.
        narrow_activations: As `billhook.load` takes it: plan for models that are loaded so. Where a target
            has no kernels for the 8-bit activations of a checkpoint, they stay in 16 bits.
        fused: Whether q, k and v, and gate and up, are one GEMM, as engines have it; else each is its own, as
            in models of `billhook.load`.
        within: Keep few of the kernels that rules choose from by predicted time, such that none serves what
            it is predicted to take longer for than the fastest by more than this share of its time: 0.03 is
            3 %. 0 keeps every one that is the fastest somewhere.
        catalog: The installed one if None.

    Raises:
        InputError: Nothing to plan, max_tokens is less than 1, within is not from 0 to 1, or `act` has 8 bits
            beside narrow_activations.
        UnsupportedError: A layer that no kernel serves, a size that a model cannot be split into, or scales
            that cannot be folded.
    """
    _check_share(within)
    models, tps, catalog = list(models), list(dict.fromkeys(tps)), catalog or load()
    names = [model.name for model in models]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(f"two models are called {repeated!r}; rename one's folder")
    found: dict[Arch, list[Layer]] = {arch: [] for arch in _merge(list(archs))}
    notes = [
        f"{model.name}: {note}"
        for model in models
        for note in model.notes
        if not (narrow_activations and note in KEPT_WIDE)
    ]
    for model in models:
        for tp in tps:
            for arch, of_arch in found.items():
                one = find_layers(
                    model,
                    tp,
                    act,
                    narrow_activations=narrow_activations,
                    fused=fused,
                    why_unserved=partial(_why_unserved, arch, catalog),
                )
                of_arch.extend(one.layers)
                notes += [f"{model.name}: on {arch}, {note}" for note in one.notes]
    return _plan(_tell_apart(found), max_tokens, catalog, tuple(dict.fromkeys(notes)), within)


def plan_problems(
    problems: Iterable[Problem],
    archs: Iterable[Arch],
    max_tokens: int = DEFAULT_MAX_TOKENS,
    catalog: Catalog | None = None,
    *,
    within: float = 0.0,
) -> Plan:
    """Plan the kernels for explicit shapes; each problem's m is not looked at.

    Args:
        problems: Shapes, types and experts.
        archs: GPU targets.
        max_tokens: Serve every m from 1 to this.
        catalog: The installed one if None.
        within: As `make_plan` takes it.

    Raises:
        InputError: Nothing to plan, max_tokens is less than 1, or within is not from 0 to 1.
        UnsupportedError: A problem that no kernel serves.
    """
    _check_share(within)
    found = list(dict.fromkeys(_layer(problem) for problem in problems))
    return _plan(dict.fromkeys(_merge(list(archs)), found), max_tokens, catalog or load(), (), within)


def to_json(plan: Plan, indent: int = 2) -> str:
    """Return the plan as JSON text."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=indent).decode()


def from_json(text: str | bytes) -> Plan:
    """Read a plan back.

    Raises:
        ConfigError: Not a plan's JSON, or one of another format.
    """
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a plan: {error}") from error
    if plan.format != FORMAT:
        raise ConfigError(f"plan format must be {FORMAT} (got {plan.format}); plan again with this version")
    return plan


def _check_share(within: float) -> None:
    if not isinstance(within, (int, float)) or not 0 <= within <= 1:  # which NaN is not
        raise InputError(f"within must be a number from 0 to 1, such as 0.03 for 3 % (got {within!r})")


def _plan(
    found: Mapping[Arch, Sequence[Layer]],
    max_tokens: int,
    catalog: Catalog,
    notes: tuple[str, ...],
    within: float,
) -> Plan:
    """Plan the kernels for the layers of each GPU target."""
    every = _in_order(found.values())
    if not every:
        raise InputError("nothing to plan: give at least one model or problem")
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1 (got {max_tokens})")
    kernels: list[PlannedKernel] = []
    dispatch: list[Dispatch] = []
    for arch, layers in found.items():
        tables = _tables(layers, arch, max_tokens, catalog, within)
        kernels += _kernels(layers, arch, max_tokens, tables)
        dispatch += [
            Dispatch(
                str(arch),
                *key,
                ranges=tuple(_ranges(table)),
            )
            for key, table in tables.items()
        ]
    return Plan(
        FORMAT,
        tuple(map(str, found)),
        max_tokens,
        every,
        tuple(kernels),
        tuple(dispatch),
        notes,
        catalog.multiprocessors,
    )


def _why_unserved(arch: Arch, catalog: Catalog, problem: Problem) -> str | None:
    """Return why no kernel serves a problem on a target; None if one does."""
    try:
        select(problem, arch, catalog)
    except UnsupportedError as error:
        return str(error)
    return None


def _tell_apart(found: Mapping[Arch, Sequence[Layer]]) -> dict[Arch, list[Layer]]:
    """Return layers with their activations' type in their names where targets differ in it."""
    types: dict[str, set[str]] = {}
    for layers in found.values():
        for layer in layers:
            types.setdefault(layer.id, set()).add(layer.types)

    def rename(layer: Layer) -> Layer:
        if len(types[layer.id]) == 1:
            return layer
        return replace(layer, name=f"{layer.name}_{parse_types(layer.types).a}")

    return {arch: [rename(layer) for layer in layers] for arch, layers in found.items()}


def _in_order(found: Iterable[Sequence[Layer]]) -> tuple[Layer, ...]:
    """Return the layers of all targets once, those of a model together, by tensor-parallel size."""
    every = list(dict.fromkeys(layer for layers in found for layer in layers))
    models = list(dict.fromkeys(layer.model for layer in every))
    tps = list(dict.fromkeys(layer.tp for layer in every))
    return tuple(sorted(every, key=lambda layer: (models.index(layer.model), tps.index(layer.tp))))


def _merge(archs: Sequence[Arch]) -> list[Arch]:
    """Return each target once, with PTX if any of its mentions asks for it."""
    if not archs:
        raise InputError("nothing to plan: give at least one GPU architecture, such as 9.0a")
    wants_ptx = {one.sm for one in archs if one.ptx}
    return list(dict.fromkeys(replace(one, ptx=one.sm in wants_ptx) for one in archs))


def _tables(
    found: Sequence[Layer], arch: Arch, max_tokens: int, catalog: Catalog, within: float
) -> dict[_Key, list[Span]]:
    """Return, per problem class, which kernel serves each m that a layer of that class can ask for."""
    rows: dict[_Key, int] = {}
    for layer in found:
        problem = layer.problem(max_tokens)
        rows[_key(problem)] = max(problem.m, rows.get(_key(problem), 0))
    problems: dict[_Key, Problem] = {}
    answers: dict[_Key, list[Stretch]] = {}
    for layer in found:
        problem = layer.problem(1)
        key = _key(problem)
        if key not in answers:
            try:
                answers[key] = stretches(problem, rows[key], arch, catalog)
            except UnsupportedError as error:
                raise UnsupportedError(f"{layer.id}: {error}") from error
            problems[key] = problem
    kept = _keep(answers.values(), within, catalog) if within else None
    return {key: join(problems[key], answer, kept) for key, answer in answers.items()}


def _keep(answers: Iterable[Sequence[Stretch]], within: float, catalog: Catalog) -> Kept:
    """Return few kernels of which one is near enough to the fastest in every stretch."""
    wants: Counter[tuple[KernelConfig, ...]] = Counter()
    for stretch in chain.from_iterable(answers):
        wants[stretch.near(within)] += stretch.last - stretch.first + 1
    place = {name: at for at, name in enumerate(catalog.by_name)}
    every = dict.fromkeys(chain.from_iterable(wants))
    order = sorted(every, key=lambda config: place[Shape.of(config).name])
    return Kept(frozenset(keep_few(wants, order)), within)


def _kernels(
    found: Sequence[Layer], arch: Arch, max_tokens: int, tables: dict[_Key, list[Span]]
) -> Iterator[PlannedKernel]:
    """Yield the kernels of the tables, in the order in which layers and then row counts ask for them."""
    needs: dict[str, list[Need]] = {}
    reasons: dict[str, dict[str, None]] = {}
    for layer in found:
        table = tables[_key(layer.problem(1))]
        for span in table:
            reasons.setdefault(span.choice.config.name, {})[span.choice.reason] = None
        for one in _ranges(table):
            # the token counts whose rows fall into the range
            first = -(-one.first // layer.rows_per_token)
            last = min(one.last // layer.rows_per_token, max_tokens)
            if first <= last:
                needs.setdefault(one.kernel, []).append(Need(layer.id, first, last))
    for name, words in reasons.items():
        yield PlannedKernel(name, str(arch), " | ".join(words), tuple(needs.get(name, ())))


def _ranges(table: Iterable[Span]) -> Iterator[Range]:
    """Yield which kernel serves which m: neighbours that differ in the reason alone are one range."""
    for name, run in groupby(table, key=lambda span: span.choice.config.name):
        first, *_, last = (edge for span in run for edge in (span.first, span.last))
        yield Range(first, last, name)


def _key(problem: Problem) -> _Key:
    return (
        problem.n,
        problem.k,
        str(problem.types),
        problem.group_size,
        problem.num_experts,
        problem.top_k,
    )


def _layer(problem: Problem) -> Layer:
    group = "ch" if problem.group_size == -1 else str(problem.group_size)
    experts = f"_e{problem.num_experts}t{problem.top_k}" if problem.moe else ""
    return Layer(
        model="problem",
        tp=1,
        name=f"n{problem.n}k{problem.k}_{problem.types}_g{group}{experts}",
        n=problem.n,
        k=problem.k,
        types=str(problem.types),
        group_size=problem.group_size,
        count=1,
        num_experts=problem.num_experts,
        top_k=problem.top_k,
    )
