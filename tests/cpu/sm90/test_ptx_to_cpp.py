"""Inline PTX as calls of functions."""

from __future__ import annotations

import pytest
from cpu.sm90.ptx_to_cpp import translate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'asm("lop3.b32 %0, %1, %2, 0xEA;" : "=r"(v) : "r"(a), "n"(C::x ? 1 : 2)); f(":");',
            "{ auto& _0 = (v); const auto _1 = (a); const auto _2 = (C::x ? 1 : 2); "
            'cpu::lop3_b32(_0, _1, _2, 0xEA); }; f(":");',
        ),
        (
            'asm volatile("ld.shared::cta.v2.u32 {%0, %1}, " /**/ "[%2];" : "=r"(x), "=r"(y) : "r"(at()));',
            "{ auto& _0 = (x); auto& _1 = (y); const auto _2 = (at()); "
            "cpu::ld_shared_v2_u32(cpu::registers(_0, _1), _2); };",
        ),
        (
            'asm volatile("{ .reg .pred p;\\nagain: test.b64 p, [%0, {%1, %2}];\\n@!p bra again; }" '
            '::"r"(a), "r"(b), "r"(c) : "memory");',
            "{ const auto _0 = (a); const auto _1 = (b); const auto _2 = (c); bool ptx_p; "
            "again: cpu::test_b64(ptx_p, _0, cpu::registers(_1, _2)); if (!ptx_p) goto again; };",
        ),
        (
            'asm("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%0};" : "+r"(d));',
            "{ auto& _0 = (d); "
            "cpu::wgmma_mma_async_sync_aligned<8, 32, cpu::s32, cpu::s8, cpu::s8>(cpu::registers(_0)); };",
        ),
        (
            'asm volatile("mov.u32 %0, %%tid;" : "=r"(v));',
            "{ auto& _0 = (v); cpu::mov_u32(_0, cpu::tid()); };",
        ),
        (
            "extern __shared__ __align__(1024) char memory[];",
            "char* const memory = cpu::dynamic_shared<1024>();",
        ),
    ],
)
def test_a_statement_becomes_calls(text: str, expected: str) -> None:
    assert translate(text) == expected


@pytest.mark.parametrize("text", ['asm("exit;"', 'asm("add.s32 %0;" : r(v));'])
def test_what_is_no_asm_statement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no end|not an operand"):
        translate(text)
