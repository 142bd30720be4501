"""The documented Marlin kernels, enumerated straight from the published table, and readers of generated text.

Independent of the package: nested loops over the table's rows, in the order that the
original generators follow. `parse_kernels` and `parse_chain` read generated files back.
"""

from __future__ import annotations

import re

F16, BF16, INT8, FP8 = "kFloat16", "kBFloat16", "kS8", "kFE4M3fn"
SAME = None  # scales have the output's type

# weight, scale, [(activation, output)], m_blocks, group_blocks, releases that have it
_SIXTEEN = [(F16, F16), (BF16, BF16)]
_ANY_M, _WHOLE_M = ["0.5", "1", "2", "3", "4"], ["1", "2", "3", "4"]
_ALL = {"0.16", "0.20", "0.33"}
TABLE = [
    ("kU4", SAME, _SIXTEEN, _ANY_M, [-1, 2, 4, 8], _ALL),
    ("kU4B8", SAME, _SIXTEEN, _ANY_M, [-1, 0, 2, 4, 8], _ALL),
    ("kU8B128", SAME, _SIXTEEN, _ANY_M, [-1, 0, 2, 4, 8], _ALL),
    ("kFE4M3fn", SAME, _SIXTEEN, _ANY_M, [-1, 8], _ALL),
    ("kFE2M1f", "kFE4M3fn", _SIXTEEN, _ANY_M, [1], _ALL),
    ("kFE2M1f", "kFE8M0fnu", [(BF16, BF16)], _ANY_M, [2], _ALL),
    ("kFE4M3fn", "kFE8M0fnu", [(BF16, BF16)], _ANY_M, [2], {"0.20", "0.33"}),
    ("kU4", SAME, [(INT8, F16), (INT8, BF16)], _WHOLE_M, [-1, 2, 4, 8], _ALL),
    ("kU4B8", SAME, [(INT8, F16), (INT8, BF16)], _WHOLE_M, [-1, 2, 4, 8], _ALL),
    ("kU4B8", SAME, [(FP8, F16), (FP8, BF16)], _WHOLE_M, [-1, 2, 4, 8], _ALL),
    ("kU4", SAME, [(FP8, F16), (FP8, BF16)], _WHOLE_M, [-1, 2, 4, 8], _ALL),
    ("kFE2M1f", "kFE8M0fnu", [(FP8, BF16)], _WHOLE_M, [2], _ALL),
]
TILES = [(128, 128, 256), (64, 256, 256), (64, 128, 128), (128, 64, 128)]  # thread_k, thread_n, threads

# a b c s threads m_blocks n_blocks k_blocks m_block_size_8 stages group_blocks is_zp_float, as C++ text
Kernel = tuple[str, ...]


def builds_fp8(release: str, capabilities: set[tuple[int, int]]) -> bool:
    if release == "0.33":
        return any(one == (8, 9) or one[0] == 12 for one in capabilities)
    return (8, 9) in capabilities or (12, 0) in capabilities


def expected(release: str, capabilities: set[tuple[int, int]]) -> dict[str, list[Kernel]]:
    """File name -> kernels, both in the order of the original generator."""
    files: dict[str, list[Kernel]] = {}
    turing: dict[str, list[Kernel]] = {}
    for b, scale, pairs, all_m, all_groups, have in TABLE:
        if release not in have:
            continue
        for a, c in pairs:
            if a == FP8 and not builds_fp8(release, capabilities):
                continue
            for group in all_groups:
                if group == 0 and release == "0.33":
                    continue
                for m in all_m:
                    for k, n, threads in TILES:
                        small = m in ("0.5", "1")
                        if threads == 256 and (k, n) != ((128, 128) if small else (64, 256)):
                            continue
                        shape = (
                            "1" if small else m,
                            str(n // 16),
                            str(k // 16),
                            "true" if m == "0.5" else "false",
                        )
                        types = (a, b, c, scale or c, str(threads))
                        triple = f"_kernel_{a[1:]}_{b[1:]}_{c[1:]}.cu".lower()
                        if any(one >= (8, 0) for one in capabilities):
                            name = ("sm89" if a == FP8 else "sm80") + triple
                            files.setdefault(name, []).append((*types, *shape, "4", str(group), "false"))
                        if (7, 5) in capabilities and c == F16 and a in (F16, INT8):
                            turing.setdefault("sm75" + triple, []).append(
                                (*types, *shape, "2", str(group), "false")
                            )
    return {**files, **turing}


_ARGUMENT = r"(?:vllm::(\w+)\.id\(\)|(-?\w+))"
_MARLIN = rf"Marlin<{', '.join([_ARGUMENT] * 12)}>"
_KERNEL = re.compile(rf"^template __global__ void {_MARLIN}\( MARLIN_KERNEL_PARAMS \);$", re.MULTILINE)
_NAMES = [
    *("a_type", "b_type", "c_type", "s_type", "threads", "thread_m_blocks", "thread_n_blocks"),
    *("thread_k_blocks", "m_block_size_8", "stages", "group_blocks", "is_zp_float"),
]
_CONDITION = " && ".join(rf"{name} == (?:vllm::)?(-?\w+)" for name in _NAMES)
_BRANCH = re.compile(rf"^(if|else if) \({_CONDITION}\)\n  kernel = ({_MARLIN});$", re.MULTILINE)


def _arguments(groups: tuple[str | None, ...]) -> Kernel:
    return tuple(group for group in groups if group is not None)


def parse_kernels(text: str) -> list[Kernel]:
    """Read the instantiations of a `.cu` file."""
    return [_arguments(match.groups()) for match in _KERNEL.finditer(text)]


def parse_chain(text: str) -> list[tuple[Kernel, Kernel]]:
    """Read the (condition, kernel) pairs of a selector in its chain form."""
    pairs = []
    for match in _BRANCH.finditer(text):
        kernel = re.fullmatch(_MARLIN, match[14])
        assert kernel is not None
        pairs.append((tuple(match.groups()[1:13]), _arguments(kernel.groups())))
    return pairs
