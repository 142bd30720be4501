"""The generated Machete sources, compiled on the host against a stub of the tree, choose as published."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cpu.vllm.machete_table import FORMATS, GRID, QQQ_TYPES, SCHEDULES, TERSE, TYPES, published_choice

from billhook.vllm import machete
from billhook.vllm.job import Job, Narrowing
from billhook.vllm.release import load_release

HERE = Path(__file__).parent
HEADERS = ("machete_mm_launcher.cuh", "machete_prepack_launcher.cuh")
CPP = {
    "void": "void",
    "f16": "cutlass::half_t",
    "bf16": "cutlass::bfloat16_t",
    "f32": "float",
    "s32": "int",
    "s8": "signed char",
    "e4m3": "cutlass::float_e4m3_t",
    "u4": "cutlass::uint4b_t",
    "u8": "unsigned char",
    "u4b8": "cutlass::vllm_uint4b8_t",
    "u8b128": "cutlass::vllm_uint8b128_t",
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a host compiler (g++)")


class Dispatch:
    """A compiled dispatch, asked in batches."""

    def __init__(self, folder: Path, job: Job) -> None:
        generated = folder / "generated"
        generated.mkdir(parents=True)
        for header in HEADERS:
            (folder / header).write_text(f'#include "{HERE / "machete_stub.hpp"}"\n')
        flags = ["g++", "-std=c++17", "-O0", "-w", "-x", "c++", "-I", str(folder), "-c"]
        if job.release.release == "0.33":
            flags.append("-DSTABLE")
        sources = [HERE / "machete_main.cpp"]
        for file in machete.render(job):
            sources.append(generated / file.path)
            sources[-1].write_text(file.text)

        def compile_one(source: Path) -> str:
            built = folder / f"{source.stem}.o"
            subprocess.run([*flags, str(source), "-o", str(built)], check=True)
            return str(built)

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        self.program = folder / "dispatch"
        subprocess.run(["g++", *objects, "-o", str(self.program)], check=True)

    def ask(self, questions: list[str]) -> list[str]:
        text = "\n".join(questions)
        run = subprocess.run([str(self.program)], input=text, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()


def mm(types: tuple[str, ...], mnk: tuple[int, int, int], schedule: str = "-") -> str:
    m, n, k = mnk
    return f"mm {' '.join(types[:7])} {m} {n} {k} {schedule}"


def describes(answer: str, types: tuple[str, ...], sch: str) -> bool:
    """Whether an implementation's spelled-out template arguments are those of the types and the schedule."""
    answer = answer.replace("machete::", "").replace("> >", ">>")
    a, b, scale, zero, channel, token, out, accumulator = (CPP[name] for name in types)
    features, tokens, *cluster = map(int, re.findall(r"\d+", sch))
    arguments = ", ".join([a, b, out, accumulator, scale, zero, channel, token])
    shape = f"Shape<Constant<{features}>, Constant<{tokens}>>"
    clusters = ", ".join(f"Constant<{size}>" for size in cluster)
    rest = (
        f"{shape}, Shape<{clusters}>, cutlass::epilogue::TmaWarpSpecializedCooperative, "
        "cutlass::gemm::StreamKScheduler, cutlass::epilogue::collective::EpilogueTileAuto"
    )
    kernel = (
        f"MacheteKernelTemplate<{arguments}, cutlass::gemm::KernelTmaWarpSpecializedCooperative, "
        f"sch_{sch}_{TERSE}>"
    )
    return kernel in answer and rest in answer


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Dispatch:
    job = Job("machete", load_release("0.33"), qqq=True)
    return Dispatch(tmp_path_factory.mktemp("stable") / "machete", job)


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory: pytest.TempPathFactory) -> Dispatch:
    narrowing = Narrowing(formats=("gptq-int4",), activations=("f16",), max_tokens=32)
    job = Job("machete", load_release("0.20"), narrowing=narrowing)
    return Dispatch(tmp_path_factory.mktemp("narrowed") / "machete", job)


def test_chooses_as_published_around_every_constant(stable: Dispatch) -> None:
    answers = stable.ask([mm(TYPES[0], mnk) for mnk in GRID])
    wrong = [
        mnk
        for mnk, answer in zip(GRID, answers, strict=True)
        if f"sch_{published_choice(*mnk)}_" not in answer
    ]
    assert not wrong


def test_every_type_and_schedule_is_the_one_asked_for(stable: Dispatch) -> None:
    wanted = [(types, sch) for types in TYPES + QQQ_TYPES for sch in SCHEDULES]
    answers = stable.ask([mm(types, (1, 1, 1), f"{sch}_{TERSE}") for types, sch in wanted])
    assert all(describes(answer, *one) for answer, one in zip(answers, wanted, strict=True))


def test_an_unknown_schedule_is_named(stable: Dispatch) -> None:
    (answer,) = stable.ask([mm(TYPES[0], (1, 1, 1), "128x512_9x9x9")])
    assert answer.startswith("error: ") and answer.endswith("schedule = 128x512_9x9x9")


def test_types_not_implemented_are_named_beside_those_that_are(stable: Dispatch) -> None:
    (answer,) = stable.ask([mm(("f16", "u4b8", "f16", "f16", "void", "void", "f16"), (1, 1, 1))])
    assert (
        "a_type=f16, b_type=u4b8, out_type=f16, with_group_scale_type=f16, with_group_zeropoint_type=f16"
        in answer
    )
    assert "with_channel_scale_type=None, a_token_scale_type=None" in answer
    assert answer.count("|\ta_type=") == len(TYPES + QQQ_TYPES)


def test_lists_every_schedule_of_a_type_and_none_of_others(stable: Dispatch) -> None:
    known, unknown = stable.ask(
        [
            f"list {' '.join(TYPES[5][:7])} 0 0 0 -",
            "list bf16 u4 void void void void bf16 0 0 0 -",
        ]
    )
    assert known.split() == [f"{sch}_{TERSE}" for sch in SCHEDULES]
    assert unknown == ""


@pytest.mark.parametrize("types", TYPES + QQQ_TYPES, ids="".join)
def test_packs_for_the_activation_and_what_weights_are_converted_to(
    stable: Dispatch, types: tuple[str, ...]
) -> None:
    (answer,) = stable.ask([f"pack {' '.join(types[:7])} 1 1 1 -"])
    a, b, scale = types[:3]
    unsigned = CPP["u4"] if "4" in b else CPP["u8"]
    assert f"PrepackedLayoutBTemplate<{CPP[a]}, {unsigned}, {CPP[a if scale == 'void' else scale]}," in answer


def test_narrowed_serves_what_was_asked_for(narrowed: Dispatch) -> None:
    asked = [mnk for mnk in GRID if mnk[0] <= 32]
    answers = narrowed.ask([mm(TYPES[0], mnk) for mnk in asked])
    assert all(
        describes(answer, TYPES[0], published_choice(*mnk))
        for mnk, answer in zip(asked, answers, strict=True)
    )


def test_narrowed_refuses_the_rest_and_names_what_to_add(narrowed: Dispatch) -> None:
    more = [mnk for mnk in GRID if mnk[0] > 32]
    kept = {published_choice(*mnk) for mnk in GRID if mnk[0] <= 32}
    for mnk, answer in zip(more, narrowed.ask([mm(TYPES[0], mnk) for mnk in more]), strict=True):
        if published_choice(*mnk) in kept:
            assert describes(answer, TYPES[0], published_choice(*mnk))
        else:
            assert answer.startswith("error: ") and "--max-tokens" in answer
            assert published_choice(*mnk) in answer
    for types, answer in zip(TYPES[1:], narrowed.ask([mm(one, (1, 1, 1)) for one in TYPES[1:]]), strict=True):
        assert f"--formats {FORMATS[types[1]]} --act {types[0]}" in answer
    (packing,) = narrowed.ask([f"pack {' '.join(TYPES[1][:7])} 1 1 1 -"])
    assert packing.startswith("error: ") and "left out" in packing
    (by_name,) = narrowed.ask([mm(TYPES[0], (1, 1, 1), f"128x256_2x1x1_{TERSE}")])
    assert by_name.startswith("error: ") and "left out" in by_name


def test_a_heuristic_of_ones_own_with_a_gap_says_so(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nwhen = "M > 10 && K != 64"\nuse = "128x64_2x1x1"\n')
    one_type = Narrowing(formats=("gptq-int4",), activations=("f16",))
    job = Job("machete", load_release("0.16"), narrowing=one_type, heuristic=rules)
    dispatch = Dispatch(tmp_path / "machete", job)
    taken, refused = dispatch.ask([mm(TYPES[0], (11, 1, 1)), mm(TYPES[0], (11, 1, 64))])
    assert describes(taken, TYPES[0], "128x64_2x1x1")
    assert refused == "error: machete's heuristic has no schedule for M = 11, N = 1, K = 64"
