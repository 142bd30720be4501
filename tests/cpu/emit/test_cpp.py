"""The emitted C++ library without a GPU: its answers agree with Python's, and all of it compiles."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import ml_dtypes
import numpy as np
import pytest

from billhook import arch, families
from billhook.build.headers import included_headers
from billhook.cli import main
from billhook.config import Problem, parse_name, parse_types
from billhook.dispatch.gemm import grid
from billhook.dispatch.launch import GROUP_CTAS_PER_SM, GROUP_THREADS, MAX_EXPERTS, ROUTE_THREADS
from billhook.dispatch.loader import GemmKernel
from billhook.dtypes import ALL, BF16, E2M1F, E4M3FN, E8M0FNU, F16, S8, U4, U4B8, U8, U8B128, VOID, DType
from billhook.emit.cpp import HOST, TYPES, emit_cpp, kernel_sources
from billhook.formats import pack, reference
from billhook.plan import Plan, plan_problems
from billhook.select import select
from billhook.vllm.machete.native import find_catalog

MODELS = Path(__file__).parents[3] / "examples/models"
QWEN = str(MODELS / "qwen3-30b-a3b-gptq-int4")
ARCHS = ("9.0a", "8.0", "8.6")
MAX_TOKENS = 1024

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a host compiler (g++)")


def write_library(plan: Plan, folder: Path) -> None:
    headers: dict[str, str] = {}
    for source in kernel_sources(plan):
        headers |= included_headers(source.text)
    for file in emit_cpp(plan, headers):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)


def problem(n: int, k: int, *, group: int = 128, experts: int = 0, top_k: int = 0) -> Problem:
    return Problem(1, n, k, parse_types("bf16_u4b8_bf16_bf16"), group, experts, top_k)


SHAPES = [
    problem(4096, 4096),
    problem(28672, 4096),
    problem(4096, 14336, group=-1),
    problem(6144, 4096, group=32),
    replace(problem(4096, 4096), types=parse_types("f16_u4b8_f16_f16")),
    problem(1536, 2048, experts=128, top_k=8),
    problem(2048, 768, experts=128, top_k=1),
    problem(28672, 4096, experts=8, top_k=2),
]


class Host:
    """The parts of a library that need no GPU, compiled by the host compiler alone."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        write_library(plan, folder)
        self.program = folder / "host"
        sources = [Path(__file__).with_name("cpp_host.cpp"), folder / "src/dispatch.cpp"]
        includes = [f"-I{folder / name}" for name in ("include", "src", "test")]
        command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *includes, *map(str, sources)]
        table = str(folder / "src/dispatch_table.cpp")
        subprocess.run([*command, table, "-o", str(self.program)], check=True)

    def select(
        self, asked: list[tuple[Problem, tuple[int, int], int]], question: str = "select"
    ) -> list[str]:
        """Ask which kernel serves each (problem, compute capability, block_m), or another question."""
        lines = []
        for one, (major, minor), block_m in asked:
            types = (code(each) for each in (one.types.a, one.types.b, one.types.s, one.types.c))
            sizes = (one.group_size, one.num_experts, one.top_k, one.n, one.k, one.m, block_m)
            lines.append(" ".join(map(str, (major, minor, *types, *sizes))))
        return self._run(question, text="\n".join(lines)).splitlines()

    def grid(self, asked: list[tuple[int, ...]]) -> list[int]:
        """Ask for the CTAs of each (kernel, multiprocessors, resident, tiles_m, strips, blocks, split_k)."""
        return list(
            map(int, self._run("grid", text="\n".join(" ".join(map(str, one)) for one in asked)).split())
        )

    def pack(self, *numbers: int) -> dict[str, np.ndarray]:
        lines = self._run("pack", *map(str, numbers)).splitlines()
        return {name: np.array(rest, np.float64) for name, *rest in map(str.split, lines)}

    def _run(self, *arguments: str, text: str = "") -> str:
        return subprocess.run(
            [str(self.program), *arguments], input=text, capture_output=True, text=True, check=True
        ).stdout


def code(element: DType) -> int:
    return TYPES.index(element) + 1


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_problems(SHAPES, arch.parse_list(ARCHS), MAX_TOKENS)


@pytest.fixture(scope="module")
def host(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(plan, tmp_path_factory.mktemp("library"))


@needs_gxx
def test_dispatch_chooses_as_select_does(host: Host) -> None:
    """Every m on the first target; around every power of two and at random on the others."""
    some = {edge + step for edge in (2**i for i in range(11)) for step in (-1, 0, 1)}
    some |= set(random.Random(0).choices(range(1, MAX_TOKENS), k=60))
    asked = [
        (replace(one, m=m), arch.parse(target))
        for target in ARCHS
        for one in SHAPES
        for m in (range(1, MAX_TOKENS + 1) if target == ARCHS[0] else sorted(some))
        if 1 <= m <= MAX_TOKENS
    ]
    assert len(asked) > 8000
    got = host.select([(one, target.capability, 0) for one, target in asked])
    want = [select(one, target).config.name for one, target in asked]
    wrong = [
        (one, mine, theirs) for (one, _), mine, theirs in zip(asked, got, want, strict=True) if mine != theirs
    ]
    assert not wrong


@needs_gxx
def test_dispatch_chooses_by_the_rules_of_the_plan(tmp_path: Path) -> None:
    documented, target = find_catalog("machete-0.20"), arch.parse("9.0a")
    shapes = SHAPES[:3]
    host = Host(plan_problems(shapes, [target], MAX_TOKENS, documented), tmp_path)
    asked = [replace(one, m=m) for one in shapes for m in range(1, MAX_TOKENS + 1)]
    got = host.select([(one, target.capability, 0) for one in asked])
    assert got == [select(one, target, documented).config.name for one in asked]
    assert {name.split("_")[0] for name in got} == {"machete"}


@needs_gxx
def test_grids_are_those_of_the_python_launcher(tmp_path: Path) -> None:
    documented = find_catalog("machete-0.20")
    plan = plan_problems(SHAPES[:2], [arch.parse("9.0a")], MAX_TOKENS, documented)
    configs, draw = [kernel.config for kernel in plan.kernels], random.Random(0)
    assert {config.tile.cluster for config in configs} == {1, 2}
    ranges = ((0, len(configs) - 1), (1, 160), (1, 4), (1, 65), (1, 500), (1, 500), (0, 1))
    asked = [tuple(draw.randint(*one) for one in ranges) for _ in range(3000)]
    want = []
    for kernel, multiprocessors, resident, *work in asked:
        loaded = SimpleNamespace(sms=multiprocessors, ctas_per_sm=resident)
        gemm = cast(GemmKernel, SimpleNamespace(config=configs[kernel], kernel=loaded))
        want.append(grid(gemm, *work))
    assert Host(plan, tmp_path).grid(asked) == want


@needs_gxx
def test_kernels_whose_warpgroups_take_turns_are_listed_with_their_threads(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nuse = "256x48_2x1x1_pingpong"\n')
    target, library = arch.parse("9.0a"), tmp_path / "library"
    host = Host(plan_problems(SHAPES[:1], [target], 64, find_catalog(rules)), library)
    (name,) = host.select([(SHAPES[0], target.capability, 0)])
    config = parse_name(name)
    assert (config.tile.pingpong, config.tile.cluster, families.threads(config)) == (True, 2, 384)
    row = (library / "src/dispatch_table.cpp").read_text().partition(f'"{name}"')[2].partition("}")[0]
    assert f"48, 256, 128, 2, 10, 384, {families.shared_memory(config)}, " in row
    assert "/*pingpong*/ true," in (library / f"kernels/{name}.cu").read_text()


@needs_gxx
def test_dispatch_answers_for_what_was_not_planned_as_bundles_do(host: Host, plan: Plan) -> None:
    beyond = replace(SHAPES[0], m=100 * MAX_TOKENS)
    last = select(replace(beyond, m=MAX_TOKENS), arch.parse("9.0a")).config.name
    portable = select(SHAPES[0], arch.parse("8.6")).config.name
    nearby = [replace(SHAPES[0], n=4112), replace(SHAPES[0], group_size=64), replace(SHAPES[5], top_k=4)]
    assert host.select([(one, (9, 0), 0) for one in (beyond, *nearby)]) == [last, "-", "-", "-"]
    # 8.9 runs the code of 8.6, 12.0 runs none of it.
    assert host.select([(SHAPES[0], (8, 9), 0), (SHAPES[0], (12, 0), 0)]) == [portable, "-"]


@needs_gxx
def test_a_routing_of_another_block_gets_the_nearest_kernel(host: Host, plan: Plan) -> None:
    kernels = [one.config for one in plan.kernels if one.config.indexed and one.arch == "8.0"]
    blocks = sorted({config.tile.tile_m for config in kernels})
    assert len(blocks) > 1
    asked = [(SHAPES[5], (8, 0), block) for block in (*blocks, 3)]
    *found, none = host.select(asked)
    assert none == "-"
    assert [next(c.tile.tile_m for c in kernels if c.name == name) for name in found] == blocks


@needs_gxx
@pytest.mark.parametrize("types", ["bf16_u4b8_bf16_bf16", "e4m3fn_u4b8_f16_f16"])
def test_rows_are_grouped_where_python_groups_them(types: str, tmp_path: Path) -> None:
    target, most = arch.parse("9.0a"), 2048
    one = replace(problem(512, 512, group=-1, experts=4, top_k=2), types=parse_types(types))
    host = Host(plan_problems([one], [target], most), tmp_path)
    chosen = [select(replace(one, m=m), target).config for m in range(1, most + 1)]
    asked = [(replace(one, m=m), target.capability, 0) for m in range(1, most + 1)]
    assert host.select(asked) == [config.name for config in chosen]
    assert any(config.grouped for config in chosen)
    blocks = {config.tile.tile_m for config in chosen}
    want = {block: any(one.grouped for one in chosen if one.tile.tile_m == block) for block in blocks}
    assert host.select([(one, target.capability, block) for block in (*want, 3)], "group") == [
        str(int(grouped)) for grouped in (*want.values(), False)
    ]


FLOATS = {
    F16: np.float16,
    BF16: ml_dtypes.bfloat16,
    E4M3FN: ml_dtypes.float8_e4m3fn,
    E2M1F: ml_dtypes.float4_e2m1fn,
    E8M0FNU: ml_dtypes.float8_e8m0fnu,
}
FORMATS = [
    (BF16, U4B8, BF16, 128, 80, 336),
    (F16, U4B8, F16, -1, 64, 64),
    (F16, U4, F16, 32, 144, 80),
    (BF16, U8, BF16, 64, 80, 144),
    (F16, U8B128, F16, 128, 64, 144),
    (F16, E4M3FN, F16, 128, 80, 144),
    (BF16, E4M3FN, E8M0FNU, 32, 80, 80),
    (BF16, E2M1F, E8M0FNU, 32, 16, 64),
    (F16, E2M1F, E4M3FN, 16, 80, 80),
    (F16, U4B8, E4M3FN, 128, 80, 336),
]


@needs_gxx
@pytest.mark.parametrize("held", FORMATS, ids=lambda held: "-".join(map(str, held)))
def test_the_test_program_packs_as_python_does(
    host: Host, held: tuple[DType, DType, DType, int, int, int]
) -> None:
    (d, b, s, group, n, k), experts = held, 2
    got = host.pack(code(b), code(s), code(d), n, k, group, experts)
    groups = 1 if group == -1 else -(-k // group)
    codes = got["codes"].astype(np.uint8).reshape(experts, k, n)
    wide = s.bits == 16
    bits = got["scales"].astype(np.uint16 if wide else np.uint8).reshape(experts, groups, n)
    folds = (b, s) == (U4B8, E4M3FN)
    packed = pack.pack_codes(pack.order_folded(codes) if folds else codes, b)
    assert np.array_equal(got["packed_codes"].astype(np.uint8), packed.view(np.uint8).ravel())
    assert np.array_equal(
        got["packed_scales"].astype(np.uint8), pack.pack_scales(bits, k, group).view(np.uint8).ravel()
    )
    scales = bits.view(FLOATS[s]).astype(np.float64)
    zeros = np.zeros_like(scales)
    if b.zero_point:
        zeros = got["zeros"].reshape(experts, groups, n)
        packed = pack.pack_scales(zeros.astype(FLOATS[d]), k, group)
        assert np.array_equal(got["packed_zeros"].astype(np.uint8), packed.view(np.uint8).ravel())
    spread = np.repeat(np.arange(groups), k if group == -1 else group)[:k]
    if b.kind == "int":
        numbers = codes.astype(np.float64) - b.bias
    else:
        numbers = codes.view(FLOATS[b]).astype(np.float64)
    want = (numbers - zeros[:, spread]) * scales[:, spread]
    if folds:
        want = want.astype(np.float32).astype(FLOATS[E4M3FN]).astype(np.float64)
    assert np.array_equal(got["values"].reshape(want.shape), want)


@needs_gxx
@pytest.mark.parametrize("out", [F16, BF16], ids=str)
@pytest.mark.parametrize("group", [-1, 32])
def test_the_test_program_bounds_errors_as_python_does(host: Host, out: DType, group: int) -> None:
    got = host.pack(code(U4B8), code(out), code(out), 16, 336, group, 1)
    for a, (rounds, name) in product((out, S8, E4M3FN), ((False, "bound"), (True, "rounding_bound"))):
        bound = reference.error_bound(336, group, out, rounds, a)
        floor, *factors, rms = got[f"{a}_{name}"]
        want = [bound.allowed(*sums) for sums in ((-1, 0, 0), (0, 1, 0), (0, 0, 1))]
        assert np.allclose([floor, *factors, rms], [bound.floor, *want, bound.rms], rtol=1e-12, atol=0)


@needs_gxx
def test_sums_of_folded_weights_are_bounded_as_whole_ones(host: Host) -> None:
    got = host.pack(code(U4B8), code(E4M3FN), code(BF16), 16, 336, 128, 1)
    bound = reference.error_bound(336, -1, BF16, False, E4M3FN)
    assert np.allclose(got["e4m3fn_bound"][[0, -1]], [bound.floor, bound.rms], rtol=1e-12, atol=0)
    assert np.isclose(got["e4m3fn_bound"][2], bound.allowed(0, 1, 0), rtol=1e-12, atol=0)


def test_the_interface_lists_every_type_in_the_order_of_the_tables() -> None:
    enum = re.search(
        r"typedef enum BillhookType \{(.*?)\}", (HOST / "include/billhook.h").read_text(), re.DOTALL
    )
    assert enum is not None
    assert re.findall(r"BILLHOOK_(\w+)", enum[1]) == [one.name.upper() for one in TYPES]
    assert set(TYPES) | {VOID} == set(ALL.values())


def test_routing_and_grouping_have_the_constants_of_the_launcher() -> None:
    text = (HOST / "src/launch.h").read_text()
    assert f"kRouteThreads = {ROUTE_THREADS};" in text
    assert f"kGroupThreads = {GROUP_THREADS};" in text
    assert f"kGroupCtasPerSm = {GROUP_CTAS_PER_SM};" in text
    assert f"kMaxExperts = {MAX_EXPERTS};" in text


def test_every_file_says_that_it_is_generated(plan: Plan) -> None:
    files = {file.path: file.text for file in emit_cpp(plan, {})}
    assert all("Generated by Billhook" in text.split("\n", 1)[0] for text in files.values())
    names = {kernel.name for kernel in plan.kernels}
    assert {f"kernels/{name}.cu" for name in (*names, "route", "group")} <= set(files)


def test_the_command_writes_once_and_touches_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "library"
    command = ["emit", QWEN, "--arch", "8.0", "--max-tokens", "4", "-o", str(out)]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert "0 files added, 0 changed, 0 removed" in capsys.readouterr().out.splitlines()[2]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    command[3] = "8.6"
    assert main(command) == 0
    assert not list(out.glob("kernels/*_sm80.cu"))
    assert list(out.glob("kernels/*_sm86.cu"))


def test_the_command_leaves_files_of_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    assert main(["emit", QWEN, "--arch", "8.0", "--max-tokens", "4", "-o", str(tmp_path)]) == 1
    assert "Makefile exists and is not generated" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (CUDA 12.5 or later) on PATH")
def test_the_library_compiles_and_its_test_program_says_what_it_lacks(tmp_path: Path) -> None:
    eight_bit = replace(problem(256, 128, group=-1, experts=1, top_k=1), types=parse_types("s8_u4b8_f16_f16"))
    shapes = [problem(256, 128), problem(256, 128, experts=9, top_k=1), eight_bit]
    plan = plan_problems(shapes, arch.parse_list("9.0a"), 17, find_catalog("machete-0.20"))
    configs = [one.config for one in plan.kernels]
    kinds = {(one.family, one.tile.cluster, one.grouped, one.types.a.bits) for one in configs}
    assert kinds >= {("machete", 2, False, 16), ("marlin", 1, False, 16), ("machete", 1, True, 8)}
    write_library(plan, tmp_path)
    made = subprocess.run(["make", "-j2", "-C", str(tmp_path)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr
    run = subprocess.run(
        [str(tmp_path / "build/billhook_test")],
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 2
    assert run.stderr.startswith("cudaGetDevice: ")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a library's test program whose kernels compute on the host."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc (CUDA 12.5 or later) on PATH, for the runtime's headers")
    folder = tmp_path_factory.mktemp("on_host")
    shapes = [problem(48, 80), problem(16, 80, experts=2, top_k=2)]
    for name, experts in product(("e4m3fn_u4b8_bf16_bf16", "s8_u4b8_f16_f16"), (0, 2)):
        one = problem(16, 80, group=-1, experts=experts, top_k=experts)
        shapes.append(replace(one, types=parse_types(name)))
    for experts in (0, 2):
        one = problem(16, 144, experts=experts, top_k=experts)
        shapes.append(replace(one, types=parse_types("e4m3fn_u4b8_e4m3fn_bf16")))
    plan = plan_problems(shapes, [arch.parse("9.0a")], 420)
    grouped = {one.config.types.a.bits for one in plan.kernels if one.config.grouped}
    assert grouped == {8, 16}
    write_library(plan, folder)
    names = [kernel.name for kernel in plan.kernels] + ["route_tokens", "group_rows"]
    stubs = folder / "kernels.cpp"
    stubs.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in names))
    sources = [*folder.glob("src/*.cpp"), folder / "test/main.cpp", stubs]
    built = folder / "billhook_test"
    includes = [f"-I{folder / name}" for name in ("include", "src", "test")]
    command = ["nvcc", "-std=c++17", "-O2", "-cudart=none", "-Xcompiler=-Wall,-Wextra,-Werror", *includes]
    stand_in = Path(__file__).with_name("cuda_on_host.cpp")
    subprocess.run([*command, *map(str, sources), str(stand_in), "-o", str(built)], check=True)
    return built


def test_the_test_program_finds_right_kernels_right(program: Path) -> None:
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    assert ran.stdout.endswith("all within bounds\n")
    assert "FAIL" not in ran.stdout
    for word in (
        "grouped",
        "channel_scales",
        "topk_weights",
        "e4m3fn_",
        "u4b8_e4m3fn_",
        "s8_",
        "whole_tiles",
    ):
        assert word in ran.stdout


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("product", "FAIL"),
        ("channel", "channel_scales"),
        ("row", "elements not written"),
        ("group", "_grouped_"),
    ],
)
def test_the_test_program_finds_wrong_kernels_wrong(program: Path, fault: str, words: str) -> None:
    ran = subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, env=dict(os.environ, FAULT=fault)
    )
    assert ran.returncode == 1, ran.stdout[-3000:] + ran.stderr
    failed = [line for line in ran.stdout.splitlines() if line.startswith("FAIL")]
    assert failed
    assert all(words in line for line in failed)
