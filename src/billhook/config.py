"""The values that pass between stages: what is asked (`Problem`) and what answers (`KernelConfig`).

All are frozen and hashable. Problem: D[m, n] = A[m, k] @ B[k, n], A activations
(row-major), B quantized weights. With `num_experts`, each of the m tokens is
multiplied by the weights of `top_k` of the experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import arch as archs
from .arch import Arch
from .dtypes import ALL, DType
from .errors import InputError

STRIP = 64  # packed weights are stored in blocks of 64 (n) x 64 (k)


@dataclass(frozen=True, order=True)
class GemmTypes:
    """Element types of one GEMM.

    Args:
        a: Activations.
        b: Weights, as stored.
        s: Group or channel scales.
        c: Output.
    """

    a: DType
    b: DType
    s: DType
    c: DType

    def __str__(self) -> str:
        return f"{self.a}_{self.b}_{self.s}_{self.c}"


@dataclass(frozen=True, order=True)
class Problem:
    """One GEMM to be computed.

    Args:
        m: Tokens (rows of A), at least 1.
        n: Output features of one weight matrix.
        k: Input features.
        types: Element types.
        group_size: Weights along k that share one scale; -1 for one scale per output channel.
        num_experts: Weight matrices of a Mixture-of-Experts layer; 0 for a dense layer.
        top_k: Experts that each token visits; 0 for a dense layer.
    """

    m: int
    n: int
    k: int
    types: GemmTypes
    group_size: int
    num_experts: int = 0
    top_k: int = 0

    @property
    def moe(self) -> bool:
        """Whether this is a Mixture-of-Experts layer."""
        return self.num_experts > 0

    @property
    def rows_per_expert(self) -> float:
        """Mean rows that one weight matrix multiplies: m if dense, m * top_k / num_experts if MoE."""
        return self.m * self.top_k / self.num_experts if self.moe else float(self.m)


@dataclass(frozen=True, order=True)
class Tile:
    """What one CTA computes at a time.

    Args:
        tile_m: Tokens: a multiple of 8.
        tile_n: Output features: a multiple of 64.
        tile_k: Input features of one pipeline stage: a multiple of 64.
        stages: Depth of the shared-memory pipeline.
        cluster: CTAs side by side along n that fetch their activations together.
        pingpong: Whether the CTA's warpgroups take whole tiles in turns, so that one stores while the other
            multiplies, instead of sharing each tile.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    stages: int
    cluster: int = 1
    pingpong: bool = False

    @property
    def strips(self) -> int:
        """Strips of 64 output features side by side."""
        return self.tile_n // STRIP

    @property
    def blocks(self) -> int:
        """Blocks of 64 input features in a stage."""
        return self.tile_k // STRIP

    def __str__(self) -> str:
        cluster = "" if self.cluster == 1 else f"c{self.cluster}"
        turns = "p" if self.pingpong else ""
        return f"m{self.tile_m}n{self.tile_n}k{self.tile_k}s{self.stages}{cluster}{turns}"


@dataclass(frozen=True, order=True)
class KernelConfig:
    """One kernel: everything that is a compile-time constant of it.

    Args:
        family: "marlin" or "machete".
        types: Element types.
        group_size: Weights along k that share one scale: 16, 32, 64, 128; -1 for channel scales.
        tile: CTA tile and pipeline depth.
        indexed: True for MoE (rows of A found through sorted_token_ids), False for dense.
        arch: The GPU target it is compiled for.
        grouped: MoE: whether the rows of A were copied into the order of sorted_token_ids before.
    """

    family: str
    types: GemmTypes
    group_size: int
    tile: Tile
    indexed: bool
    arch: Arch
    grouped: bool = False

    @property
    def name(self) -> str:
        """The kernel's name: symbol, file stem and key; `parse_name` reads it back.

        Grammar: FAMILY_A_B_S_C_gGROUP_mMnNkKsSTAGES[cCLUSTER][p]_(dense|moe|grouped)_ARCH, GROUP `ch`
        for channel scales, no cluster for one CTA, p for pingpong.
        Example: `marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s4_moe_sm90a`.
        """
        group = "ch" if self.group_size == -1 else str(self.group_size)
        kind = "grouped" if self.grouped else "moe" if self.indexed else "dense"
        return f"{self.family}_{self.types}_g{group}_{self.tile}_{kind}_{self.arch.sm}"

    def __str__(self) -> str:
        return self.name


def parse_types(text: str) -> GemmTypes:
    """Read `str(GemmTypes)`, such as `bf16_u4b8_bf16_bf16`, back.

    Raises:
        InputError: The text is not four known element types joined by `_`.
    """
    names = text.split("_")
    if len(names) != 4 or any(name not in ALL for name in names):
        raise InputError(f"{text!r} are not GEMM types; they look like bf16_u4b8_bf16_bf16 (A, B, scales, D)")
    return GemmTypes(*(ALL[name] for name in names))


_NAME = re.compile(
    r"(?P<family>[a-z]+)_(?P<a>[a-z0-9]+)_(?P<b>[a-z0-9]+)_(?P<s>[a-z0-9]+)_(?P<c>[a-z0-9]+)"
    r"_g(?P<group>ch|[1-9]\d*)_m(?P<m>[1-9]\d*)n(?P<n>[1-9]\d*)k(?P<k>[1-9]\d*)s(?P<stages>[1-9]\d*)"
    r"(?:c(?P<cluster>[2-9]|[1-9]\d+))?(?P<pingpong>p)?"
    r"_(?P<kind>dense|moe|grouped)_(?P<arch>sm\d+[af]?)"
)


def parse_name(name: str) -> KernelConfig:
    """Read a kernel's name back into its config.

    Raises:
        InputError: The name does not follow the grammar of `KernelConfig.name`.
    """
    match = _NAME.fullmatch(name)
    if match is None or any(match[field] not in ALL for field in "absc"):
        raise InputError(
            f"{name!r} is not a kernel name; one looks like "
            "marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s4_dense_sm90a"
        )
    return KernelConfig(
        family=match["family"],
        types=GemmTypes(*(ALL[match[field]] for field in "absc")),
        group_size=-1 if match["group"] == "ch" else int(match["group"]),
        tile=Tile(
            tile_m=int(match["m"]),
            tile_n=int(match["n"]),
            tile_k=int(match["k"]),
            stages=int(match["stages"]),
            cluster=int(match["cluster"] or 1),
            pingpong=match["pingpong"] is not None,
        ),
        indexed=match["kind"] != "dense",
        arch=archs.parse(match["arch"]),
        grouped=match["kind"] == "grouped",
    )
