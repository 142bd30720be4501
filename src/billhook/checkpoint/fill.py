"""Fill a file of a packed folder: which tensors it gets, and their data, several layers at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dtypes import BF16, F16, DType
from ..errors import WeightError
from ..formats.elements import numpy_dtype
from ..formats.host import Parts
from ..formats.packed import PackedArrays
from .fuse import Fused
from .header import Tensor
from .source import Source
from .write import Planned, Shard

Pack: TypeAlias = Callable[[Parts, DType], PackedArrays]
Report: TypeAlias = Callable[[int], None]

NAMES = {F16: "F16", BF16: "BF16"}


@dataclass(frozen=True)
class Contents:
    """What a file of a packed folder holds.

    Args:
        modules: Packed weights.
        plain: Tensors copied from the checkpoint.
    """

    modules: list[Fused] = field(default_factory=list)
    plain: list[Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of the checkpoint that it is made of."""
        return sum(map(_count_bytes, self.modules)) + sum(tensor.bytes for tensor in self.plain)


def plan_tensors(contents: Contents, act: DType) -> Iterator[Planned]:
    """Yield the tensors of a file.

    Args:
        contents: What it holds.
        act: Type of the activations.
    """
    for fused in contents.modules:
        yield from plan_module(fused, act)
    for tensor in contents.plain:
        yield Planned(tensor.name, tensor.dtype, tensor.shape)


def plan_module(fused: Fused, act: DType) -> Iterator[Planned]:
    """Yield the tensors of a packed weight, and of what belongs to it."""
    scale = "U8" if fused.stored.scale else NAMES[act]
    dtypes = {"codes": "I32", "scales": scale, "zeros": NAMES[act]}
    for name, shape in fused.shapes.items():
        yield Planned(f"{fused.name}.{name}", dtypes.get(name, "F32"), shape)
    yield Planned(f"{fused.name}.meta", "I64", (5,))
    if fused.bias:
        experts = (fused.num_experts,) if fused.num_experts else ()
        yield Planned(f"{fused.name}.bias", NAMES[act], (*experts, fused.n))
    if fused.static:
        experts = (fused.num_experts,) if fused.num_experts else ()
        yield Planned(f"{fused.name}.input_scales", "F32", (*experts, len(fused.parts)))
    if fused.ordered:
        yield Planned(f"{fused.name}.input_order", "I32", (fused.k,))


def fill(
    shard: Shard, source: Source, contents: Contents, act: DType, *, pack: Pack, jobs: int, report: Report
) -> None:
    """Write the tensors of a file.

    Args:
        shard: The file.
        source: The checkpoint.
        contents: What the file holds.
        act: Type of the activations.
        pack: Packs one weight.
        jobs: Layers that are packed at a time.
        report: Called with the bytes of the checkpoint that have been dealt with.

    Raises:
        WeightError: A value that cannot be packed, or a file that cannot be read.
        OSError: The file cannot be written.
    """

    def one_module(fused: Fused) -> None:
        _fill_module(shard, source, fused, act, pack)
        report(_count_bytes(fused))

    def one_tensor(tensor: Tensor) -> None:
        shard.copy(tensor)
        report(tensor.bytes)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one_module, fused) for fused in contents.modules]
        futures += [pool.submit(one_tensor, tensor) for tensor in contents.plain]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fill_module(shard: Shard, source: Source, fused: Fused, act: DType, pack: Pack) -> None:
    count, name = max(1, fused.num_experts), fused.name
    for expert, weight in enumerate(source.experts(name)):
        try:
            packed = pack(weight.parts, act)
        except WeightError as error:
            raise WeightError(f"{fused.linears[0].file}: {name}: {error}") from error
        tensors: dict[str, npt.NDArray[Any]] = packed.tensors()
        del tensors["meta"]  # that of one expert
        if weight.bias is not None:
            tensors["bias"] = _round(f"{name}.bias", weight.bias, act)
        if weight.input_scales is not None:
            tensors["input_scales"] = weight.input_scales
        for part, array in tensors.items():
            shard.put(f"{name}.{part}", array, expert, count)
        if weight.input_order is not None and expert == 0:
            shard.put(f"{name}.input_order", weight.input_order)
    meta = (fused.held.number, fused.n, fused.k, fused.group_size, fused.num_experts)
    shard.put(f"{name}.meta", np.array(meta, np.int64))


def _round(name: str, values: npt.NDArray[Any], act: DType) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        rounded: npt.NDArray[Any] = values.astype(numpy_dtype(act), copy=False)
    if not np.isfinite(rounded.astype(np.float32)).all():
        largest = np.abs(values.astype(np.float32)).max()
        raise WeightError(f"{name} holds {largest:g}, which is beyond {act}; pack with --act bf16")
    return rounded


def _count_bytes(fused: Fused) -> int:
    return sum(one.bytes for one in fused.linears)


def group_files(source: Source) -> dict[str, Contents]:
    """Return what each file of the packed folder holds, by name: what its namesake of the checkpoint holds.

    A GEMM whose modules are in several files goes into that of its first.
    """
    files = {file.name: Contents() for file in source.checkpoint.files}
    for fused in source.modules.values():
        files[fused.linears[0].file.name].modules.append(fused)
    for tensor in source.plain.values():
        files[tensor.file.name].plain.append(tensor)
    return {name: contents for name, contents in files.items() if contents.modules or contents.plain}


def list_files(files: Mapping[str, Contents], act: DType) -> tuple[dict[str, str], int]:
    """Return the file of each tensor, and the bytes of all tensors.

    Args:
        files: What each file holds.
        act: Type of the activations.
    """
    places: dict[str, str] = {}
    size = 0
    for name, contents in files.items():
        for one in plan_tensors(contents, act):
            places[one.name] = name
            size += one.bytes
    return places, size
