"""Which linear layers are one GEMM by their names: q, k and v; gate and up; the experts of a layer.

Names decide, so that a checkpoint needs no known architecture; `models.gemms` names the same modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .modules import Linear

DENSE = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# Names of an expert's projections; gate_up_proj and down_proj may be one tensor of all experts.
EXPERTS = {"w13": ("gate_proj", "up_proj", "w1", "w3", "gate_up_proj"), "w2": ("down_proj", "w2")}
EXPERT = re.compile(r"(?P<place>.+\.experts)\.(?P<number>0|[1-9][0-9]{0,8})\.(?P<leaf>[^.]+)")
_ALL_LEAVES = (*DENSE.values(), *EXPERTS.values())


def leaf(name: str) -> str:
    """Return the last part of a module's name."""
    return name.rpartition(".")[2]


def is_expert(one: Linear) -> bool:
    """Return whether a module is a projection of an expert, or of all experts of a layer."""
    return bool(one.stored.num_experts or EXPERT.fullmatch(one.name))


def group(linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Return linear layers by the name of their GEMM, in order; those of one by `place`."""
    together: dict[str, list[Linear]] = {}
    for one in linears:
        together.setdefault(_fused_name(one), []).append(one)
    return {name: sorted(members, key=place) for name, members in together.items()}


def is_complete(name: str, members: Sequence[Linear]) -> bool:
    """Return whether a dense GEMM has all the modules that its name stands for."""
    return name == members[0].name or len(members) == len(DENSE[leaf(name)])


def place(one: Linear) -> tuple[int, int]:
    """Return a key that sorts the modules of a GEMM: by expert, then in the order of output features."""
    expert, last = EXPERT.fullmatch(one.name), leaf(one.name)
    leaves = next((leaves for leaves in _ALL_LEAVES if last in leaves), (last,))
    return int(expert["number"]) if expert else 0, leaves.index(last)


def _fused_name(one: Linear) -> str:
    """Return the name of the GEMM that a module belongs to by its name."""
    expert = EXPERT.fullmatch(one.name)
    where, _, last = one.name.rpartition(".")
    where = expert["place"] if expert else where
    tables = EXPERTS if is_expert(one) else DENSE
    return next((f"{where}.{fused}" for fused, leaves in tables.items() if last in leaves), one.name)
