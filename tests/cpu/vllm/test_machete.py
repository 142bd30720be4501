"""Machete's generated files hold the published types and schedules, spelled as each release wants."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from cpu.vllm.machete_table import FIELDS, QQQ_TYPES, SCHEDULES, TYPES, declared, defined, symbols

from billhook.errors import ConfigError, InputError
from billhook.vllm import machete
from billhook.vllm.documented import run_script
from billhook.vllm.job import Job, Narrowing
from billhook.vllm.machete import (
    DataType,
    EpilogueScheduleType,
    ImplConfig,
    MixedInputKernelScheduleType,
    PrepackTypeConfig,
    ScheduleConfig,
    TileSchedulerType,
    TypeConfig,
    VLLMDataType,
    generate_sch_sig,
    generate_terse_sch_sig,
    generate_type_option_name,
    generate_type_signature,
)
from billhook.vllm.machete.plan import make_plan, prepack_types
from billhook.vllm.release import load_release

RELEASES = ["0.16", "0.20", "0.33"]
SCRIPT = Path(__file__).parents[3] / "csrc" / "quantization" / "machete" / "generate.py"
GPTQ = TypeConfig(
    a=DataType.f16,
    b=VLLMDataType.u4b8,
    b_group_scale=DataType.f16,
    b_group_zeropoint=DataType.void,
    b_channel_scale=DataType.void,
    a_token_scale=DataType.void,
    out=DataType.f16,
    accumulator=DataType.f32,
)
SCHEDULE = ScheduleConfig(
    tile_shape_mn=(128, 128),
    cluster_shape_mnk=(2, 1, 1),
    kernel_schedule=MixedInputKernelScheduleType.TmaWarpSpecializedCooperative,
    epilogue_schedule=EpilogueScheduleType.TmaWarpSpecializedCooperative,
    tile_scheduler=TileSchedulerType.StreamK,
)


def render(number: str, **options: object) -> dict[str, str]:
    job = Job("machete", load_release(number), **options)  # type: ignore[arg-type]
    files = {file.path: file.text for file in machete.render(job)}
    assert list(files) == machete.names(job)
    return files


@pytest.mark.parametrize(("number", "qqq"), list(itertools.product(RELEASES, (False, True))))
def test_instantiates_the_published_set_in_order_over_eight_files(number: str, qqq: bool) -> None:
    files = render(number, qqq=qqq)
    expected = symbols(TYPES + QQQ_TYPES if qqq else TYPES)
    parts = [f"machete_mm_impl_part{part}.cu" for part in range(1, 9)]
    assert list(files) == ["machete_mm_dispatch.cu", "machete_prepack.cu", *parts]
    assert declared(files["machete_mm_dispatch.cu"]) == expected
    held = [defined(files[part]) for part in parts]
    assert list(itertools.chain(*held)) == expected
    share = -(-len(expected) // 8)
    assert all(len(one) == share for one in held[:-1])
    assert 0 < len(held[-1]) <= share


@pytest.mark.parametrize("number", RELEASES)
def test_each_part_holds_the_schedules_that_it_uses_and_no_others(number: str) -> None:
    for name, text in render(number).items():
        if "impl_part" in name:
            structs = re.findall(r"^struct (sch_\w+) \{$", text, re.MULTILINE)
            used = {re.sub(r"^impl_\w+?_sch_", "sch_", symbol) for symbol in defined(text)}
            assert len(structs) == len(set(structs))
            assert set(structs) == used


@pytest.mark.parametrize("number", RELEASES)
def test_spells_tensors_scalars_and_errors_as_the_release_does(number: str) -> None:
    text = "".join(render(number).values())
    old = [
        len(re.findall(pattern, text))
        for pattern in (
            r"(?<!::)torch::Tensor\b",
            r"\bat::ScalarType\b",
            r"(?<!STD_)TORCH_CHECK_NOT_IMPLEMENTED",
        )
    ]
    new = [
        text.count(word)
        for word in (
            "torch::stable::Tensor",
            "torch::headeronly::ScalarType",
            "STD_TORCH_CHECK_NOT_IMPLEMENTED",
        )
    ]
    wanted, unwanted = (new, old) if number == "0.33" else (old, new)
    assert all(wanted)
    assert not any(unwanted)
    assert ("torch::headeronly::toString(a_type)" in text) == (number == "0.33")


def test_names_follow_the_document() -> None:
    assert generate_sch_sig(SCHEDULE) == (
        "128x128_2x1x1_KernelTmaWarpSpecializedCooperative_TmaWarpSpecializedCooperative_StreamKScheduler"
    )
    assert generate_terse_sch_sig(SCHEDULE) == "128x128_2x1x1_TmaMI__TmaCoop_streamK"
    assert generate_type_signature(GPTQ) == "f16u4b8f16voidvoidvoidf16f32"
    assert generate_type_option_name(GPTQ) == (
        "a_type=f16, b_type=u4b8, with_group_scale_type=f16, with_group_zeropoint_type=void, "
        "with_channel_scale_type=void, a_token_scale_type=void, out_type=f16, accumulator_type=f32"
    )


def test_the_configs_have_the_documented_fields() -> None:
    names = {config: [field.name for field in fields(config)] for config in (ScheduleConfig, TypeConfig)}
    assert names[ScheduleConfig] == [
        "tile_shape_mn",
        "cluster_shape_mnk",
        "kernel_schedule",
        "epilogue_schedule",
        "tile_scheduler",
    ]
    assert names[TypeConfig] == [
        "a",
        "b",
        "b_group_scale",
        "b_group_zeropoint",
        "b_channel_scale",
        "a_token_scale",
        "out",
        "accumulator",
    ]
    assert [field.name for field in fields(PrepackTypeConfig)] == [
        "a",
        "b_num_bits",
        "convert",
        "accumulator",
    ]
    assert [field.name for field in fields(ImplConfig)] == ["types", "schedules", "heuristic"]
    assert hash(GPTQ) and hash(SCHEDULE)


def test_the_plan_is_made_of_the_documented_configs() -> None:
    impls = make_plan(Job("machete", load_release("0.16"), qqq=True)).impls
    assert [generate_type_signature(impl.config.types) for impl in impls] == [
        "".join(types) for types in TYPES + QQQ_TYPES
    ]
    for impl, types in zip(impls, TYPES + QQQ_TYPES, strict=True):
        assert generate_type_option_name(impl.config.types) == ", ".join(
            f"{field}={name}" for field, name in zip(FIELDS, types, strict=True)
        )
        schedules = [
            generate_terse_sch_sig(one).removesuffix("_TmaMI__TmaCoop_streamK")
            for one in impl.config.schedules
        ]
        assert schedules == SCHEDULES
        assert [schedule for _, schedule in impl.config.heuristic if schedule in impl.config.schedules]
    packed = [(one.a.value, one.b_num_bits, one.convert.value) for one in prepack_types(impls)]
    assert packed == [
        ("f16", 4, "f16"),
        ("bf16", 4, "bf16"),
        ("f16", 8, "f16"),
        ("bf16", 8, "bf16"),
        ("s8", 4, "f16"),
        ("s8", 4, "s8"),
        ("e4m3", 4, "f16"),
        ("e4m3", 4, "e4m3"),
    ]


def test_rules_of_our_own_kernels_are_refused_in_a_vllm_tree(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rule]]\nwhen = "M > 64"\nuse = "128x64_2x1x1"\n\n[[rule]]\nuse = "128x64_1x1x1_pingpong"\n'
    )
    with pytest.raises(ConfigError, match=r"rules\.toml:5: 128x64_1x1x1_pingpong is for our own kernels"):
        render("0.20", heuristic=rules)


def test_narrowing_to_a_format_it_does_not_have_leaves_a_dispatch_that_refuses() -> None:
    files = render("0.20", narrowing=Narrowing(formats=("nvfp4",)))
    assert list(files) == ["machete_mm_dispatch.cu", "machete_prepack.cu"]
    assert files["machete_mm_dispatch.cu"].count("was left out of this ") == len(TYPES)


@pytest.mark.parametrize(
    ("narrowing", "message"),
    [
        (Narrowing(formats=("gptq-int5",)), "--formats gptq-int5 is not known; known are awq-int4,"),
        (Narrowing(activations=("f64",)), "--act f64 is not known; known are f16, bf16, int8, fp8"),
        (Narrowing(group_sizes=(48,)), "--group-size 48 is not known; known are -1,"),
    ],
)
def test_unknown_narrowing_is_refused(narrowing: Narrowing, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        render("0.20", narrowing=narrowing)


def test_the_script_writes_beside_itself_or_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "machete" / "generate.py"
    script.parent.mkdir()
    assert run_script("machete", [], script) == 0
    assert len(list((script.parent / "generated").glob("*.cu"))) == 10
    assert "10 new" in capsys.readouterr().out
    assert run_script("machete", [str(tmp_path / "elsewhere")], script) == 0
    assert len(list((tmp_path / "elsewhere").glob("*.cu"))) == 10


def test_the_script_refuses_what_it_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script("machete", ["a", "b"], tmp_path / "generate.py") == 2
    assert "usage: generate.py [OUT_DIR]" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run_script("machete", [str(tmp_path / "file")], tmp_path / "generate.py") == 2
    assert "is a file" in capsys.readouterr().err
    assert not (tmp_path / "generated").exists()


def test_the_launcher_runs_from_any_folder(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "machete_mm_dispatch.cu").exists()
