"""One call of a vLLM tree's Marlin host code at a time, step by step: what the model of it must cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Kernel = tuple[int, int, int, int, bool]  # thread_k, thread_n, threads, m_blocks, m_block_size_8


@dataclass(frozen=True)
class Call:
    """A GEMM and the GPU it runs on."""

    n: int
    k: int
    a_bits: int
    b_bits: int
    group_size: int
    zero_points: bool
    smem: int
    stages: int
    sms: int

    @property
    def seen_group(self) -> int:
        """The scales' rows say whether there is more than one group."""
        return self.group_size if self.group_size <= 0 or self.k // self.group_size > 1 else -1

    def bytes(self, kernel: Kernel, moe: bool) -> int:
        thread_k, thread_n, _, m_blocks, _ = kernel
        rows = 16 * m_blocks
        a = self.stages * rows * thread_k * (1 if self.a_bits == 8 else 2)
        b = self.stages * (thread_k * thread_n // (32 // self.b_bits)) * 4
        reduction = rows * (thread_n + 8) * 2
        buffer = max(b, reduction, min(b, reduction) + thread_n * 2)
        if self.seen_group == 0:
            groups = -(-thread_k // 32)
            scales = max(groups * self.stages * 2, 32) * thread_n * 2
        else:
            groups = 1 if self.seen_group == -1 else -(-thread_k // self.seen_group)
            scales = groups * thread_n * 2 * self.stages
        zeros = (scales // 4 if self.b_bits == 4 else scales // 2) if self.zero_points else 0
        order = self.stages * thread_k // 4 if self.seen_group == 0 else 0
        return buffer + a + scales + zeros + order + (rows * 16 if moe else 0)

    def valid(self, kernel: Kernel, limit: int, moe: bool) -> bool:
        return self.k % kernel[0] == 0 and self.n % kernel[1] == 0 and self.bytes(kernel, moe) <= limit


def tiles(m_blocks: int) -> list[tuple[int, int, int]]:
    first = (64, 256, 256) if m_blocks > 1 else (128, 128, 256)
    return [first, (64, 128, 128), (128, 64, 128)]


def dense(m: int, call: Call, exists: Callable[[Kernel], bool]) -> list[Kernel] | None:
    """Return the kernels that a dense GEMM of m rows launches; None if the host gives up."""
    launched = []
    highest, rest = 4, m
    while rest:
        count = min(rest // (highest * 16), 128 if call.n <= 4096 else 16)
        split = count * highest * 16 if count else rest
        m_blocks = min(-(-split // 16), highest)
        eight = split <= 8 and call.a_bits == 16
        asked = ((*tile, m_blocks, eight) for tile in tiles(m_blocks))
        chosen = next((one for one in asked if call.valid(one, call.smem - 512, False) and exists(one)), None)
        if chosen is None:
            if highest == 1:
                return None
            highest -= 1
            continue
        if call.n // chosen[1] * -(-split // (m_blocks * 16)) * 4 <= call.sms:
            narrow = (128, 64, 128, m_blocks, eight)
            chosen = narrow if call.valid(narrow, call.smem, False) else chosen
        if not exists(chosen):
            return None
        launched.append(chosen)
        rest -= split
    return launched


def moe(
    tokens: int, num_experts: int, top_k: int, call: Call, exists: Callable[[Kernel], bool]
) -> list[Kernel]:
    """Return the kernels that an MoE GEMM of a step of `tokens` tokens compares."""
    size = 64
    for size in (8, 16, 32, 48, 64):
        if tokens * top_k / num_experts / size < 0.9:
            break
    if call.a_bits == 8:
        size = max(size, 16)
    asked = ((*tile, -(-size // 16), size == 8) for tile in tiles(-(-size // 16)))
    return [one for one in asked if call.valid(one, call.smem - 512, True) and exists(one)]
