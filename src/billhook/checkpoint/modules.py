"""A checkpoint's linear layers, from its tensors; and rows that fold layers and experts of one kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path

from ..errors import UnsupportedError, WeightError
from ..models import Quantization, WeightFormat
from .declared import Declared, check_module
from .header import Tensor
from .stored import UNQUANTIZED, Stored, read_fused_experts, read_stored

_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "tok_embeddings", "word_embeddings", "position_embeddings")
_FUSED = re.compile(r"(?P<name>.+_proj)_(?:blocks|scales)")
# A part of a name that counts layers or experts.
_NUMBER = re.compile(r"(?:(?<=\.)|\A)(?:0|[1-9][0-9]{0,8})(?=\.|\Z)")


@dataclass(frozen=True)
class Linear:
    """A linear layer of a checkpoint.

    Args:
        name: Its module's full name.
        stored: How its weights are stored.
        bytes: Bytes of all its tensors.
        parts: Those tensors, by the last part of their names; of fused experts: blocks, scales, bias.
    """

    name: str
    stored: Stored
    bytes: int
    parts: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def file(self) -> Path:
        """The file of its first tensor."""
        return next(iter(self.parts.values())).file


@dataclass(frozen=True)
class Row:
    """Linear layers of one kind, whose names differ in numbers.

    Args:
        name: Their name, with ranges for numbers: `model.layers.0..31.self_attn.q_proj`.
        gemm: The GEMM that engines make of each, such as qkv; "" if none is known.
        packed: The format that their weights are packed in, such as u4b8; "" if they are not quantized, or in
            a format that is not built.
        stored: How each one's weights are stored.
        count: How many there are.
        bytes: Bytes of all.
    """

    name: str
    gemm: str
    packed: str
    stored: Stored
    count: int
    bytes: int


def read_linears(tensors: Iterable[Tensor], declared: Declared) -> dict[str, Linear]:
    """Return the linear layers by name, in the order of layers.

    Raises:
        WeightError: A module's tensors make no sense together, or are not what the config says.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        module, _, part = tensor.name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    found = []
    for module, parts in modules.items():
        fused = dict.fromkeys(match["name"] for match in map(_FUSED.fullmatch, parts) if match)
        found += [_read_fused(module, name, parts) for name in fused]
        stored = read_stored(module, parts, declared.packings)
        if stored is None or _is_embedding(module, stored):
            continue
        if stored.format == "gptq":
            stored = replace(stored, format=declared.gptq)
        found.append(Linear(module, stored, sum(tensor.bytes for tensor in parts.values()), parts))
    for one in found:
        check_module(declared, one.name, one.stored, one.parts)
    return {one.name: one for one in sorted(found, key=lambda one: natural_order(one.name))}


def _read_fused(module: str, name: str, parts: Mapping[str, Tensor]) -> Linear:
    """Read experts that are tensors of the module above them."""
    blocks, scales = (parts.get(f"{name}_{suffix}") for suffix in ("blocks", "scales"))
    if blocks is None or scales is None:
        lone = next(one for one in (blocks, scales) if one is not None)
        other = "blocks" if blocks is None else "scales"
        raise WeightError(f"{lone.file}: tensor {module}.{name}_{other} is missing beside {lone.name}")
    held = {"blocks": blocks, "scales": scales}
    bias = parts.get(f"{name}_bias")
    if bias is not None:
        held["bias"] = bias
    size = sum(tensor.bytes for tensor in held.values())
    return Linear(f"{module}.{name}", read_fused_experts(blocks, scales, bias), size, held)


def _is_embedding(module: str, stored: Stored) -> bool:
    return stored.format == UNQUANTIZED and module.rpartition(".")[2] in _EMBEDDINGS


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in name.split(".")]


def template(name: str) -> str:
    """Return a module's name with `*` for its layer's and expert's number."""
    return _NUMBER.sub("*", name)


def fold(linears: Iterable[Linear], gemms: Mapping[str, str], quantization: Quantization | None) -> list[Row]:
    """Return linear layers as rows, in order of their first layer.

    Args:
        linears: The layers.
        gemms: The GEMM of each module that has one, by the module's name.
        quantization: How they are stored, by the config; None if that is not built.
    """
    kinds: dict[tuple[str, str, str, Stored, int], list[tuple[int, ...]]] = {}
    for one in linears:
        packed = _packed(one, quantization)
        kind = (template(one.name), gemms.get(one.name, ""), packed, one.stored, one.bytes)
        kinds.setdefault(kind, []).append(tuple(int(number) for number in _NUMBER.findall(one.name)))
    rows = []
    for (pattern, gemm, packed, stored, size), places in kinds.items():
        for ranges, count in _fold(places):
            name = "".join(chain(*zip_longest(pattern.split("*"), ranges, fillvalue="")))
            rows.append(Row(name, gemm, packed, stored, count, count * size))
    return rows


def count_inputs(linears: Iterable[Linear], quantization: Quantization | None) -> dict[str, int]:
    """Return for each type of 8-bit activations how many layers take it if that is asked for, by the config.

    Args:
        linears: The layers.
        quantization: How they are stored, by the config; None if that is not built.
    """
    found: Counter[str] = Counter()
    for one in linears:
        wanted = _find_format(one, quantization)
        if wanted is not None and wanted.activations is not None and not wanted.packed.folded:
            found[str(wanted.activations)] += 1
    return dict(found)


def _packed(one: Linear, quantization: Quantization | None) -> str:
    """Return the name of the format that a module is packed in; "" if it is in none."""
    wanted = _find_format(one, quantization)
    return wanted.packed.name if wanted else ""


def _find_format(one: Linear, quantization: Quantization | None) -> WeightFormat | None:
    """Return how a quantized module is stored, by the config; None if that is not told or not built."""
    if quantization is None or one.stored.format == UNQUANTIZED:
        return None
    try:
        return quantization.stored([one.name])
    except UnsupportedError:
        return None


def _fold(places: Sequence[tuple[int, ...]]) -> list[tuple[tuple[str, ...], int]]:
    """Return ranges for each number, and how many places they stand for."""
    if not places[0]:
        return [((), 1)]
    inner: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in places:
        inner.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, rests in inner.items():
        alike.setdefault(tuple(sorted(rests)), []).append(first)
    return [
        ((_ranges(firsts), *ranges), len(firsts) * count)
        for rests, firsts in alike.items()
        for ranges, count in _fold(rests)
    ]


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as `0..3,5,7..9`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
