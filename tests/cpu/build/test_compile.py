from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from cpu.build.stand_in import unit

from billhook import arch
from billhook.build import Artifact, Cache, Unit, compile_unit, compile_units, kernel_unit, support_unit
from billhook.build import compile as compiling
from billhook.build.headers import included_headers
from billhook.build.nvrtc import Compiled, compile_options, compile_text
from billhook.build.resources import read_resources
from billhook.build.toolchain import find_nvrtc
from billhook.config import parse_name
from billhook.emit import SourceFile
from billhook.errors import CompileError, InputError, StorageError, ToolchainError
from billhook.families import shared_memory

ELF = b"\x7fELF"


def test_nvrtc_tells_its_full_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", find_nvrtc().version)


@pytest.mark.parametrize("target", ["8.0", "8.6", "8.9", "9.0", "9.0a", "10.0a", "10.0f", "12.0"])
def test_every_target_compiles(target: str) -> None:
    one = unit("k", target=target)
    compiled = compile_text(one.source.path, one.source.text, {}, one.arch)
    assert compiled.cubin.startswith(ELF)
    assert compiled.ptx == ""
    assert read_resources(compiled.log)["k"].registers > 0


def test_ptx_is_kept_where_it_is_asked_for() -> None:
    one = unit("k", target="9.0+PTX")
    compiled = compile_text(one.source.path, one.source.text, {}, one.arch)
    assert ".visible .entry k(" in compiled.ptx


def test_a_target_that_the_compiler_does_not_know_is_refused() -> None:
    future = arch.Arch(19, 9)
    with pytest.raises(ToolchainError, match=r"sm_199.*pip install"):
        compile_text("k.cu", "", {}, future)


def test_headers_come_from_what_was_handed_over_and_from_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '#include "x/value.cuh"\nextern "C" __global__ void k(int* out) { *out = kValue; }\n'
    sm90 = arch.parse("9.0")
    given = {"x/value.cuh": '#include "x/other.cuh"\n', "x/other.cuh": "constexpr int kValue = 1;\n"}
    assert compile_text("k.cu", text, given, sm90).cubin.startswith(ELF)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/value.cuh").write_text("constexpr int kValue = 2;\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompileError) as caught:
        compile_text("k.cu", text, {}, sm90)
    assert "x/value.cuh" in caught.value.log


def test_a_kernel_that_does_not_compile_carries_the_compilers_words() -> None:
    one = unit("broken", value="no_such_name")
    with pytest.raises(CompileError, match=r"broken\.cu") as caught:
        compile_text(one.source.path, one.source.text, {}, one.arch)
    assert 'identifier "no_such_name" is undefined' in caught.value.log


def test_spills_and_shared_memory_are_reported() -> None:
    many = ", ".join(f"x{i} = in[{i} * n]" for i in range(200))
    total = " + ".join(f"x{i} * in[n + {i}]" for i in range(200))
    text = (
        'extern "C" __global__ void __launch_bounds__(1024, 2) k(const float* in, float* out, int n) {\n'
        f"  __shared__ float pad[64]; pad[n] = 0; __syncthreads();\n  float {many};\n"
        f"  __syncthreads(); float sum = {total}; out[threadIdx.x] = sum + pad[n + 1]; }}\n"
    )
    used = read_resources(compile_text("k.cu", text, {}, arch.parse("8.0")).log)["k"]
    assert used.registers <= 32
    assert used.static_shared == 256
    assert used.spills > 0


def test_the_second_compilation_is_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    first = compile_unit(unit("k"), cache)
    monkeypatch.setattr(compiling, "compile_text", None)
    second = compile_unit(unit("k"), cache)
    assert (first.cached, second.cached) == (False, True)
    assert second.cubin == first.cubin
    assert second.entries == first.entries
    assert second.seconds == first.seconds


def test_a_damaged_entry_is_compiled_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = compile_unit(unit("k"), cache)
    cache.path(first.key).write_bytes(b"damage")
    again = compile_unit(unit("k"), cache)
    assert not again.cached
    assert again.cubin == first.cubin
    assert compile_unit(unit("k"), cache).cached


def test_a_changed_header_or_compiler_is_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = unit("k")
    one = Unit(one.name, one.kind, one.arch, SourceFile("k.cu", '#include "h.cuh"\n' + one.source.text))
    monkeypatch.setattr(compiling, "included_headers", lambda text: {"h.cuh": "// one\n"})
    cache = Cache(tmp_path)
    assert not compile_unit(one, cache).cached
    assert compile_unit(one, cache).cached
    monkeypatch.setattr(compiling, "included_headers", lambda text: {"h.cuh": "// two\n"})
    assert not compile_unit(one, cache).cached


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    units = [unit("a"), unit("b", value="?"), unit("c", value="2.0f"), unit("d", value="missing")]
    seen: dict[str, type] = {}
    done, failed = compile_units(
        units, Cache(tmp_path), jobs=2, done=lambda one, outcome: seen.update({one.name: type(outcome)})
    )
    assert [artifact.unit.name for artifact in done] == ["a", "c"]
    assert sorted(failed) == ["b", "d"]
    assert 'identifier "missing" is undefined' in failed["d"].log
    assert seen == {"a": Artifact, "b": CompileError, "c": Artifact, "d": CompileError}
    again, _ = compile_units(units, Cache(tmp_path), jobs=1)
    assert all(artifact.cached for artifact in again)


def test_a_cache_that_cannot_be_written_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="BILLHOOK_CACHE_DIR"):
        compile_units([unit("a"), unit("b", value="2.0f")], Cache(tmp_path / "file"), jobs=2)


def test_an_interrupt_keeps_what_was_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [unit(f"k{i}", value=f"{i}.0f") for i in range(20)]

    def interrupt(one: Unit, outcome: Artifact | CompileError) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_units(units, Cache(tmp_path), jobs=2, done=interrupt)
    kept, _ = Cache(tmp_path).measure()
    assert 1 <= kept < len(units)


def test_kernels_know_their_launch(tmp_path: Path) -> None:
    config = parse_name("marlin_bf16_u4b8_bf16_bf16_g128_m16n128k256s4_moe_sm90a")
    one = kernel_unit(config)
    assert (one.name, one.kind, one.threads) == (config.name, "gemm", 256)
    assert one.dynamic_shared == shared_memory(config)
    assert support_unit("route", config.arch).name == "route_sm90a"


def test_nothing_of_the_machine_enters_the_options() -> None:
    options = compile_options(arch.parse("9.0a"))
    assert "--gpu-architecture=sm_90a" in options
    assert not any(os.sep in option for option in options)


@pytest.mark.parametrize(("value", "arrivals"), [(None, 1), ("", 1), ("0", 1), ("1", 32)])
def test_racecheck_has_every_lane_arrive(
    value: str | None, arrivals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BILLHOOK_RACECHECK", raising=False)
    if value is not None:
        monkeypatch.setenv("BILLHOOK_RACECHECK", value)
    text = f"""#include "billhook/ptx/async_copy.cuh"
        static_assert(billhook::ptx::arrivals_of_warp() == {arrivals});
        __global__ void k() {{}}"""
    compile_text("k.cu", text, included_headers(text), arch.parse("9.0a"))


def test_kernels_for_racecheck_have_entries_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BILLHOOK_RACECHECK", raising=False)
    cache = Cache(tmp_path)
    plain = compile_unit(unit("k"), cache)
    monkeypatch.setenv("BILLHOOK_RACECHECK", "1")
    followed = compile_unit(unit("k"), cache)
    assert not followed.cached and followed.key != plain.key
    monkeypatch.setenv("BILLHOOK_RACECHECK", "0")
    assert compile_unit(unit("k"), cache).cached
    assert cache.measure()[0] == 2


def test_racecheck_is_asked_for_by_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLHOOK_RACECHECK", "yes")
    with pytest.raises(InputError, match="BILLHOOK_RACECHECK is 'yes': set it to 1"):
        compile_units([unit("k")], Cache(tmp_path), jobs=1)
    assert Cache(tmp_path).measure() == (0, 0)


def test_numbers_of_an_unknown_log_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "compile_text", lambda *args: Compiled(b"", "", "silence", 0.0))
    with pytest.raises(ToolchainError, match="silence"):
        compile_unit(unit("k"), Cache(tmp_path))
    assert Cache(tmp_path).measure() == (0, 0)
