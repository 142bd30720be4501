"""What a vLLM tree's host code asks of `kernel_selector.h`, for all GEMMs that a request stands for.

A model of the selection in `marlin_mm`, dense and MoE, of releases 0.16 to 0.33. `dense` and `moe`
give every kernel that the host may look up for 1 to `rows` rows on one kind of GPU. They err on
the side of more: where the host's choice hangs on what is not known when the sources are
generated, every outcome counts.

Assumptions:

* The GPU's opt-in shared memory is that of its compute capability (`arch.ArchLimits.smem_per_cta`).
* The number of SMs is not known, but no GPU has more than `MOST_SMS`.
* MoE: all block sizes between those of one token and of the most tokens come up. The host compares the
  occupancy of all tiles that fit, and for that looks each of them up: all count, whatever their registers.
* Neither caller nor environment forces a tile (`thread_k`, `thread_n`), and `is_zp_float` is false.
* Weights stored with a single group along k are multiplied by the channel-scale kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

MOST_SMS = 192  # the whole GB202 die, the largest so far
RESERVED = 512  # bytes of shared memory that automatic selection leaves free
MOE_BLOCK_SIZES = (8, 16, 32, 48, 64)
MOE_FILL = 0.9  # a block size is taken if the mean rows of an expert fill less than this of it
MOE_META = 16  # bytes of shared memory for each row of a tile: sorted ids and top-k weights
M_BLOCK = 16
MAX_M_BLOCKS = 4


class Tile(NamedTuple):
    """A tile the host may choose: input features, output features, threads."""

    thread_k: int
    thread_n: int
    threads: int


SMALL_BATCH = (Tile(128, 128, 256), Tile(64, 128, 128), Tile(128, 64, 128))
LARGE_BATCH = (Tile(64, 256, 256), Tile(64, 128, 128), Tile(128, 64, 128))
NARROW = Tile(128, 64, 128)  # takes over where the first choice leaves most SMs idle


class Lookup(NamedTuple):
    """One question to the selector, for given types and scale groups.

    Args:
        tile: The CTA tile along k and n, and its threads.
        m_blocks: Blocks of 16 rows.
        m_block_size_8: Whether the one block has 8 rows.
    """

    tile: Tile
    m_blocks: int
    m_block_size_8: bool


@dataclass(frozen=True)
class Gemm:
    """One weight matrix (or one for each expert) as it is stored, and what it is multiplied by.

    Args:
        n: Output features.
        k: Input features.
        a_bits: Bits of an activation.
        b_bits: Bits of a weight.
        group_size: Weights along k that share a scale; -1: a whole channel, 0: act-order over part of k.
        zero_points: Whether each group has one.
    """

    n: int
    k: int
    a_bits: int
    b_bits: int
    group_size: int
    zero_points: bool

    @property
    def effective_group_size(self) -> int:
        """The group size that the host sees: a single group is taken for a whole channel."""
        return -1 if self.group_size >= self.k else self.group_size

    @property
    def group_blocks(self) -> int:
        """The kernel's template argument."""
        size = self.effective_group_size
        return size // 16 if size > 0 else size


@dataclass(frozen=True)
class Gpu:
    """What the host asks of the GPU.

    Args:
        shared_memory: Opt-in limit of one CTA, bytes.
        stages: Depth of the pipeline it runs.
    """

    shared_memory: int
    stages: int


Exists = Callable[[Lookup], bool]
"""Whether the selector has a kernel for a lookup, for the GEMM's types and groups."""


def shared_memory(gemm: Gemm, tile: Tile, m_blocks: int, stages: int, moe: bool) -> int:
    """Return the host's estimate of the shared memory that a kernel needs, bytes."""
    rows = m_blocks * M_BLOCK
    a = stages * rows * tile.thread_k * gemm.a_bits // 8
    b = stages * tile.thread_k * tile.thread_n * gemm.b_bits // 8
    reduction = rows * (tile.thread_n + 8) * 2
    bias = tile.thread_n * 2
    scales = _scale_bytes(gemm, tile, stages)
    zeros = scales * gemm.b_bits // 16 if gemm.zero_points else 0
    order = stages * tile.thread_k // 4 if gemm.group_size == 0 else 0
    meta = rows * MOE_META if moe else 0
    return max(b, reduction, min(b, reduction) + bias) + a + scales + zeros + order + meta


def _scale_bytes(gemm: Gemm, tile: Tile, stages: int) -> int:
    size = gemm.effective_group_size
    if size == 0:  # act-order: any group may come up; room for groups of 32, twice over, at least 32 of them
        return max(-(-tile.thread_k // 32) * stages * 2, 32) * tile.thread_n * 2
    groups = 1 if size == -1 else -(-tile.thread_k // size)
    return groups * tile.thread_n * 2 * stages


def fits(gemm: Gemm, tile: Tile, m_blocks: int, gpu: Gpu, *, moe: bool, reserved: int = RESERVED) -> bool:
    """Whether the host accepts a tile: it divides the GEMM and its shared memory suffices."""
    if gemm.k % tile.thread_k or gemm.n % tile.thread_n:
        return False
    return shared_memory(gemm, tile, m_blocks, gpu.stages, moe) <= gpu.shared_memory - reserved


def dense(gemm: Gemm, rows: int, gpu: Gpu, exists: Exists) -> set[Lookup]:
    """Return the kernels that dense GEMMs of 1 to `rows` rows look up.

    The host cuts the rows into chunks and selects for each. It starts with tiles of at most
    four blocks of rows and, when no tile of that height fits, goes on with lower ones.
    A chunk is one tile high or a multiple of the highest; the latter choose among the same tiles.

    Args:
        gemm: The weights.
        rows: Most rows of a call.
        gpu: The GPU.
        exists: Which kernels the full set has; the host passes over the others.
    """
    found: set[Lookup] = set()
    for max_m_blocks in range(MAX_M_BLOCKS, 0, -1):
        lookups = [set(_dense_lookups(gemm, chunk, gpu, exists)) for chunk in _chunks(rows, max_m_blocks)]
        found.update(*lookups)
        if all(lookups):
            break
    return found


def _chunks(rows: int, max_m_blocks: int) -> list[int]:
    """Return the least chunk for each height of tile: 8 rows, then 1 to `max_m_blocks` blocks of 16."""
    least = [1, 9, *(blocks * M_BLOCK + 1 for blocks in range(1, max_m_blocks))]
    return [chunk for chunk in least if chunk <= rows]


def _dense_lookups(gemm: Gemm, chunk: int, gpu: Gpu, exists: Exists) -> Iterator[Lookup]:
    """Give the tile the host chooses for a chunk one tile high, and the one that may take over from it."""
    m_blocks = -(-chunk // M_BLOCK)
    eight = chunk <= 8 and gemm.a_bits == 16
    for tile in LARGE_BATCH if m_blocks > 1 else SMALL_BATCH:
        first = Lookup(tile, m_blocks, eight)
        if fits(gemm, tile, m_blocks, gpu, moe=False) and exists(first):
            break
    else:
        return
    yield first
    if gemm.n // first.tile.thread_n * 4 <= MOST_SMS and fits(
        gemm, NARROW, m_blocks, gpu, moe=False, reserved=0
    ):
        narrow = Lookup(NARROW, m_blocks, eight)
        if exists(narrow):
            yield narrow


class Routing(NamedTuple):
    """How the tokens of an MoE layer are spread.

    Args:
        num_experts: Experts held by this GPU.
        top_k: Experts that the router gives each token.
    """

    num_experts: int
    top_k: int


def moe_block_size(tokens: int, routing: Routing, a_bits: int) -> int:
    """Return the rows of a block that vLLM's MoE layer chooses for a step of `tokens` tokens."""
    mean = tokens * routing.top_k / routing.num_experts
    size = next((one for one in MOE_BLOCK_SIZES if mean / one < MOE_FILL), MOE_BLOCK_SIZES[-1])
    return max(size, 16) if a_bits == 8 else size


def moe(gemm: Gemm, tokens: int, routing: Routing, gpu: Gpu, exists: Exists) -> set[Lookup]:
    """Return the kernels that MoE GEMMs of 1 to `tokens` tokens look up.

    Both GEMMs of a layer work in blocks of the size chosen from the step's tokens and the router's top_k.

    Args:
        gemm: The weights of one expert.
        tokens: Most tokens of a step.
        routing: How tokens are spread over the experts.
        gpu: The GPU.
        exists: Which kernels the full set has; the host passes over the others.
    """
    least, most = (moe_block_size(count, routing, gemm.a_bits) for count in (1, tokens))
    found: set[Lookup] = set()
    for size in MOE_BLOCK_SIZES:
        if least <= size <= most:
            m_blocks = -(-size // M_BLOCK)
            for tile in LARGE_BATCH if m_blocks > 1 else SMALL_BATCH:
                lookup = Lookup(tile, m_blocks, size == 8)
                if fits(gemm, tile, m_blocks, gpu, moe=True) and exists(lookup):
                    found.add(lookup)
    return found
