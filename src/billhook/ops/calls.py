"""GEMMs on a GPU, prepared for arguments of one kind.

What the checks and the choice of a kernel look at is a key: types, shapes, strides, devices and alignments of
tensors (of codes and scales less), and all other arguments. The first call with a key is checked, finds its
kernel and decides on the launch; a later one with an equal key would come to the same, so it only looks that
up and fills in addresses.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

import torch

from ..config import KernelConfig, parse_name
from ..dispatch import launch
from ..dispatch.gemm import GemmLaunch
from ..dispatch.loader import GemmKernel
from ..dispatch.provider import Request, kernels
from ..dispatch.routing import capacity
from ..errors import InputError, WeightError
from ..families import unserved
from . import checks
from .arguments import Gemm, MoeGemm, MoeGemmTopk
from .kinds import KINDS
from .tensors import current_stream

_MOST_CALLS = 1 << 14
_ALIGNMENT = 16  # the largest that is asked of an address
_REQUIRED = len(Gemm._fields) - len(Gemm._field_defaults)  # a, codes and scales, and what is no tensor


class Call:
    """A GEMM with or without experts, prepared for arguments of one kind.

    Args:
        p: Arguments of that kind, checked.
        out: Where D goes, likewise checked; a new tensor if None.
    """

    def __init__(self, p: Gemm | MoeGemm, out: torch.Tensor | None) -> None:
        self._others = p._fields[_REQUIRED:]
        self._rows, self._n, self._output = p.rows, p.n, p.output
        self._device = p.a.get_device()
        self._clears = isinstance(p, MoeGemm) and not p.complete
        self._launch: GemmLaunch | None = None
        self._groups = False
        self._blocks = 0
        if self._rows == 0:
            return
        m, k = p.a.shape
        top_k, lda = 1, p.a.stride(0) if m > 1 else k
        if isinstance(p, MoeGemm):
            kernel = find_kernel(p.config, request(p, p.experts, p.top_k, p.block_m))
            top_k, self._blocks = p.top_k, capacity(p.rows, p.experts, p.block_m)
            self._groups = kernel.config.grouped
            tiles_m, lda = self._blocks, k if self._groups else lda
        else:
            kernel = find_kernel(p.config, request(p))
            tiles_m = -(-m // kernel.config.tile.tile_m)
        self._launch = GemmLaunch(
            kernel,
            tiles_m,
            m=p.rows,
            n=p.n,
            k=k,
            lda=lda,
            ldd=p.n if out is None or p.rows == 1 else out.stride(0),
            groups=p.scales.shape[-2],
            split_k=p.split_k,
            top_k=top_k,
        )

    def empty(self, a: torch.Tensor) -> torch.Tensor:
        """Return memory for D beside A."""
        if a.dtype is self._output:
            return a.new_empty(self._rows, self._n)  # the quickest way to say so
        return a.new_empty((self._rows, self._n), dtype=self._output)

    def run(self, arguments: tuple[Any, ...], out: torch.Tensor) -> None:
        """Launch on the current stream.

        Args:
            arguments: Of the kind that this was prepared for.
            out: D.

        Raises:
            WeightError: The weight is misaligned.
        """
        if self._clears:
            out.zero_()
        prepared = self._launch
        if prepared is None:
            return
        a, codes, scales = arguments[0], arguments[1].data_ptr(), arguments[2].data_ptr()
        others: dict[str, int] = {}
        if len(arguments) > _REQUIRED:
            rest = zip(self._others, arguments[_REQUIRED:], strict=False)
            others = {name: one.data_ptr() for name, one in rest if isinstance(one, torch.Tensor)}
        if (codes | scales | others.get("zeros", 0)) % _ALIGNMENT:
            raise WeightError(
                f"codes, scales and zeros of weights must be {_ALIGNMENT}-byte aligned; use .clone()"
            )
        if self._groups:
            a = _group(MoeGemm(*arguments), self._blocks)
        prepared.start(
            current_stream(self._device),
            torch.cuda.is_current_stream_capturing(),
            a=a.data_ptr(),
            codes=codes,
            scales=scales,
            d=out.data_ptr(),
            **others,
        )


def find_call(kind: type[Gemm] | type[MoeGemm], arguments: tuple[Any, ...], out: torch.Tensor | None) -> Call:
    """Return the call for arguments, checked and prepared if they are the first of their kind.

    Args:
        kind: The operator's arguments.
        arguments: As the operator got them.
        out: Where D goes; a new tensor if None.

    Raises:
        WeightError, InputError: As `checks.check_gemm`, `checks.check_moe_gemm` and `checks.check_output`.
        UnsupportedError: No kernel serves the problem.
    """
    calls = kernels().calls
    a, codes, scales, n, group_size, form, *rest = arguments
    key = (
        kind,
        _signature(out),
        _signature(a),
        codes.shape,
        codes.get_device(),
        scales.dtype,
        scales.shape,
        scales.get_device(),
        n,
        group_size,
        form,
        *map(_signature, rest),
    )
    found: Call | None = calls.get(key)
    if found is not None:
        return found
    p = kind(*arguments)
    if isinstance(p, MoeGemm):
        checks.check_moe_gemm(p)
    else:
        checks.check_gemm(p)
    if out is not None:
        checks.check_output(p, out)
    found = Call(p, out)
    if len(calls) >= _MOST_CALLS:
        calls.clear()
    calls[key] = found
    return found


def request(p: Gemm | MoeGemm | MoeGemmTopk, experts: int = 0, top_k: int = 0, block_m: int = 0) -> Request:
    """Return what is asked of dispatch.

    Args:
        p: The arguments.
        experts: Number of experts; 0 for a dense GEMM.
        top_k: Experts that each token visits.
        block_m: Rows of one block of the routing; 0 for any.
    """
    a = p.a
    m, k = a.shape
    names = KINDS[p.format, a.dtype, p.scales.dtype, p.output].names
    return Request(a.get_device(), m, p.n, k, *names, p.group_size, experts, top_k, block_m)


def find_kernel(config: str, asked: Request) -> GemmKernel:
    """Return the kernel for a problem, loaded.

    Args:
        config: A kernel's name; "" for the one that suits.
        asked: The problem.

    Raises:
        InputError: The named kernel is for other problems.
        UnsupportedError: No kernel serves the problem.
    """
    source = kernels()
    if not config:
        return source.gemm(asked)
    chosen = _parse(config)
    why_not = unserved(chosen, asked.problem)
    if why_not is not None:
        raise InputError(f"kernel {config} does not serve this problem: {why_not}")
    if asked.block_m not in (0, chosen.tile.tile_m):
        raise InputError(
            f"kernel {config} takes blocks of {chosen.tile.tile_m} rows (routed in {asked.block_m})"
        )
    return source.load(chosen, asked.device)


@cache
def _parse(name: str) -> KernelConfig:
    return parse_name(name)


def _signature(argument: Any) -> Hashable:
    """Return all that checks and dispatch look at of an argument."""
    if argument is None or not isinstance(argument, torch.Tensor):
        return argument
    return (
        argument.dtype,
        argument.shape,
        argument.stride(),
        argument.data_ptr() % _ALIGNMENT,
        argument.get_device(),
    )


def _group(p: MoeGemm, blocks: int) -> torch.Tensor:
    """Copy the activations into the order of the routing; rows that pad a block stay uninitialized.

    Args:
        p: The MoE GEMM.
        blocks: The most blocks that its routing can have.
    """
    a = p.a
    m, k = a.shape
    grouped = a.new_empty((blocks * p.block_m, k))
    device = a.get_device()
    launch.launch_group(
        kernels().group(device),
        current_stream(device),
        a=a.data_ptr(),
        grouped=grouped.data_ptr(),
        sorted_token_ids=p.sorted_token_ids.data_ptr(),
        num_tokens_padded=p.num_tokens_padded.data_ptr(),
        rows=p.rows,
        row_bytes=k * a.itemsize,
        stride_bytes=(a.stride(0) if m > 1 else k) * a.itemsize,
        top_k=p.top_k,
    )
    return grouped
