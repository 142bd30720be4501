"""A narrowed Marlin folder holds every kernel that the tree looks up for the requests."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from cpu.vllm import host
from cpu.vllm.machete_table import published_choice
from hypothesis import given, settings
from hypothesis import strategies as st

from billhook.arch import Arch, parse_list
from billhook.cli import main
from billhook.errors import ConfigError, InputError, UnsupportedError
from billhook.vllm import host_model, marlin
from billhook.vllm.job import Job, Narrowing
from billhook.vllm.marlin_plan import Instantiation, plan_marlin
from billhook.vllm.narrow import Reach, Request, narrow, requests
from billhook.vllm.release import ACTIVATIONS, load_release
from billhook.vllm.report import report

ARCHS = tuple(parse_list("7.5,8.0,8.6,8.9,9.0a,10.0,12.0"))
MODELS = Path(__file__).parents[3] / "examples" / "models"
LLAMA, MOE, AWQ = (
    MODELS / name / "config.json"
    for name in ("llama-3.1-8b-gptq-int4", "qwen3-30b-a3b-gptq-int4", "deepseek-r1-distill-llama-8b-awq")
)
FULL = {
    number: plan_marlin(Job("marlin", load_release(number), ARCHS)) for number in ("0.16", "0.20", "0.33")
}


def job(
    narrowing: Narrowing, family: str = "marlin", number: str = "0.20", archs: tuple[Arch, ...] = ARCHS
) -> Job:
    return Job(family, load_release(number), archs, narrowing=narrowing)


def key(kernel: Instantiation) -> host.Kernel:
    tile = (kernel.thread_k_blocks * 16, kernel.thread_n_blocks * 16, kernel.threads)
    return (*tile, kernel.thread_m_blocks, kernel.m_block_size_8)


def same_types(kernel: Instantiation, request: Request) -> bool:
    types = (request.format, ACTIVATIONS[request.activation], ACTIVATIONS[request.output])
    return (kernel.format, kernel.a, kernel.c) == types


@st.composite
def all_requests(draw: st.DrawFn, number: str) -> Request:
    form = draw(st.sampled_from(load_release(number).marlin.formats))
    a, c = draw(st.sampled_from(form.types))
    short = {name: key for key, name in ACTIVATIONS.items()}
    blocks = draw(st.sampled_from(form.group_blocks))
    group = blocks * 16 if blocks > 0 else blocks
    moe = draw(st.booleans())
    return Request(
        name="any",
        n=64 * draw(st.integers(1, 40) | st.sampled_from([64, 224, 448])),
        k=max(group, 64) * draw(st.integers(1, 40)),
        format=form.name,
        activation=short[a],
        output=short[c],
        group_size=group,
        max_tokens=draw(st.integers(1, 4096)),
        num_experts=draw(st.integers(1, 128)) if moe else 0,
        top_k=draw(st.integers(1, 8)) if moe else 0,
    )


@settings(max_examples=300)
@given(
    data=st.data(),
    number=st.sampled_from(sorted(FULL)),
    capability=st.sampled_from(ARCHS),
    sms=st.integers(1, host_model.MOST_SMS),
)
def test_every_kernel_that_a_call_launches_is_kept(
    data: st.DataObject, number: str, capability: Arch, sms: int
) -> None:
    request = data.draw(all_requests(number))
    tokens = data.draw(st.integers(1, request.max_tokens))
    stages = 2 if capability.capability == (7, 5) else 4
    form = next(
        form
        for form in load_release(number).marlin.formats
        if form.name == request.format and any(a == ACTIVATIONS[request.activation] for a, _ in form.types)
    )
    call = host.Call(
        n=request.n,
        k=request.k,
        a_bits=8 if request.activation in ("int8", "fp8") else 16,
        b_bits=8 if form.weight in ("kU8B128", "kFE4M3fn") else 4,
        group_size=request.group_size or 0,
        zero_points=form.weight == "kU4",
        smem=capability.limits.smem_per_cta,
        stages=stages,
        sms=sms,
    )
    blocks = call.seen_group // 16 if call.seen_group > 0 else call.seen_group
    all_of_them = {
        key(one): one
        for one in FULL[number].kernels
        if same_types(one, request) and (one.stages, one.group_blocks) == (stages, blocks)
    }
    if request.activation == "fp8" and capability.capability not in ((8, 9), (12, 0)):
        return  # the host refuses
    if request.num_experts:
        launched = host.moe(tokens, request.num_experts, request.top_k, call, all_of_them.__contains__)
    else:
        launched = host.dense(tokens, call, all_of_them.__contains__) or []
    kept = Reach(FULL[number].kernels, load_release(number), ARCHS).of(request)
    assert {all_of_them[one] for one in launched} <= kept
    assert all(same_types(one, request) for one in kept)


def test_what_no_shape_reaches_is_what_was_found_by_hand() -> None:
    """34 of the 1197 dense kernels of 0.33 are dead: k % 128 == 0 lets the wider tile win first."""
    release = load_release("0.33")
    full = FULL["0.33"]
    reach = Reach(full.kernels, release, ARCHS)
    short = {name: key for key, name in ACTIVATIONS.items()}
    reached: set[Instantiation] = set()
    for form in release.marlin.formats:
        for (a, c), n, k in product(form.types, (64, 128, 256, 8192), (64, 192, 256, 8192)):
            reached |= reach.of(Request("any", n, k, form.name, short[a], short[c], None, 1 << 20))
    assert len(full.kernels) == 1197
    dead = Counter(
        (one.thread_k_blocks * 16, one.thread_n_blocks * 16, one.thread_m_blocks, one.group_blocks)
        for one in full.kernels
        if one not in reached
    )
    assert dead == {(64, 128, 1, 8): 34}


def test_a_dense_model_needs_few_kernels() -> None:
    planned = marlin.plan(job(Narrowing(models=(LLAMA,))))
    assert {(one.format, one.a, one.group_blocks) for one in planned.kernels} == {
        ("gptq-int4", "kFloat16", 8)
    }
    assert 8 <= len(planned.kernels) <= 20
    assert len(planned.kernels) + len(planned.dropped) == len(FULL["0.20"].kernels)
    assert not marlin.plan(job(Narrowing(models=(LLAMA,)), "marlin-moe")).kernels


def test_fewer_tokens_need_fewer_rows() -> None:
    planned = marlin.plan(job(Narrowing(models=(LLAMA,), max_tokens=8)))
    assert {(one.thread_m_blocks, one.m_block_size_8) for one in planned.kernels} == {(1, True)}


def test_an_moe_model_keeps_all_tiles_that_the_host_compares() -> None:
    planned = marlin.plan(job(Narrowing(models=(MOE,)), "marlin-moe"))
    heights = Counter((one.thread_m_blocks, one.m_block_size_8, one.stages) for one in planned.kernels)
    assert heights == {
        (blocks, eight, 4): 3 for blocks, eight in [(1, True), (1, False), (2, False), (3, False), (4, False)]
    }


def test_formats_stand_in_for_what_the_config_says() -> None:
    stored = requests(Narrowing(models=(AWQ,)))
    assert stored is not None
    assert {(one.format, one.group_size) for one in stored} == {("awq-int4", 128)}
    found = requests(Narrowing(models=(AWQ,), formats=("awq-int4", "nvfp4"), activations=("bf16", "int8")))
    assert found is not None
    assert {(one.format, one.activation, one.group_size) for one in found} == {
        (form, act, None) for form in ("awq-int4", "nvfp4") for act in ("bf16", "int8")
    }
    planned = marlin.plan(job(Narrowing(models=(AWQ,), formats=("awq-int4",), group_sizes=(128,))))
    assert {(one.format, one.group_blocks) for one in planned.kernels} == {("awq-int4", 8)}


def test_weights_in_activation_order_need_formats(tmp_path: Path) -> None:
    config = json.loads(LLAMA.read_text())
    config["quantization_config"]["desc_act"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"act-order.*--formats"):
        requests(Narrowing(models=(tmp_path,)))
    assert requests(Narrowing(models=(tmp_path,), formats=("gptq-int4",)))


def test_every_parallel_size_that_splits_the_model_counts() -> None:
    found = requests(Narrowing(models=(MOE,)))
    assert found is not None
    attention = {(one.name.rsplit("/", 2)[1], one.n) for one in found if one.name.endswith("/qkv")}
    assert attention == {("tp1", 5120), ("tp2", 2560), ("tp4", 1280), ("tp8", 768)}
    experts = {(one.name.rsplit("/", 2)[1], one.k) for one in found if one.name.endswith("/w2")}
    assert experts == {("tp1", 768), ("tp2", 384)}  # a quarter would cut a group of 128
    assert {one.num_experts for one in found} == {0, 128, 64, 32, 16}
    assert {one.top_k for one in found if one.num_experts} == {
        8
    }  # w2 works in the blocks chosen for the router's


def test_code_for_a_target_runs_on_later_gpus_of_its_generation() -> None:
    """8.0 code runs on 8.6, whose smaller shared memory makes the host choose lower tiles."""
    narrowing = Narrowing(models=(LLAMA,), formats=("gptq-int8",), group_sizes=(32,), activations=("f16",))
    for_80 = set(marlin.plan(job(narrowing, archs=tuple(parse_list("8.0")))).kernels)
    for_90 = set(marlin.plan(job(narrowing, archs=tuple(parse_list("9.0a")))).kernels)
    assert for_90 < for_80
    assert set(marlin.plan(job(narrowing, archs=tuple(parse_list("8.0+PTX")))).kernels) == for_80


@pytest.mark.parametrize(
    ("narrowing", "left"),
    [
        (Narrowing(formats=("gptq-int4",)), {"format": {"gptq-int4"}}),
        (Narrowing(activations=("int8",)), {"a": {"kS8"}}),
        (Narrowing(group_sizes=(-1, 0)), {"group_blocks": {-1, 0}}),
        (Narrowing(max_tokens=20), {"thread_m_blocks": {1, 2}}),
        (
            Narrowing(formats=("fp8", "mxfp8"), activations=("bf16",), max_tokens=1),
            {"m_block_size_8": {True, False}},
        ),
    ],
)
def test_limits_without_a_model(narrowing: Narrowing, left: dict[str, set[object]]) -> None:
    planned = narrow(FULL["0.20"], job(narrowing))
    for field, values in left.items():
        assert {getattr(one, field) for one in planned.kernels} == values
    dropped_or_kept = Counter([*planned.kernels, *planned.dropped])
    assert dropped_or_kept == Counter(FULL["0.20"].kernels)


def test_reports_add_up_and_give_reasons() -> None:
    answer = report(job(Narrowing(models=(LLAMA,))))
    assert (answer.kept + answer.dropped) == len(FULL["0.20"].kernels)
    assert [part.name for part in answer.parts] == [file.name for file in FULL["0.20"].files]
    reasons = {part.name: part.dropped for part in answer.parts}
    assert reasons["sm80_kernel_float16_u4_float16.cu"] == {"no layer is stored as awq-int4": 60}
    assert "no layer has group size 64" in reasons["sm80_kernel_float16_u4b8_float16.cu"]
    assert "the host chooses other tiles for these layers" in reasons["sm80_kernel_float16_u4b8_float16.cu"]
    nothing = report(job(Narrowing(models=(LLAMA,)), "marlin-moe"))
    assert (nothing.kept, nothing.unserved) == (0, ())
    assert {reason for part in nothing.parts for reason in part.dropped} == {"no model has MoE layers"}


def test_requests_without_any_kernel_are_reported(tmp_path: Path) -> None:
    config = json.loads(LLAMA.read_text())
    config["quantization_config"]["group_size"] = 256
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    answer = report(job(Narrowing(models=(file,))))
    assert answer.kept == 0
    assert len(answer.unserved) == 16
    assert answer.unserved[0].endswith("/tp1/qkv (n 6144, k 4096, gptq-int4, f16, group size 256)")


def test_the_command_shows_counts_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "plan",
        "--target",
        "vllm-0.33",
        "--arch",
        "9.0a",
        "--models",
        str(MOE),
        "--max-tokens",
        "64",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "marlin-moe: 12 kernels kept, 660 dropped" in out
    assert "60 because no layer is stored as gptq-int8" in out
    shapes = {(one.n, one.k) for one in requests(Narrowing(models=(MOE,))) or () if not one.num_experts}
    chosen = {published_choice(m, n, k) for m in range(1, 65) for n, k in shapes}
    assert f"machete: {len(chosen)} kernels kept, {72 - len(chosen)} dropped" in out
    assert main([*arguments, "--json", "--family", "marlin"]) == 0
    (family,) = json.loads(capsys.readouterr().out)["families"]
    assert (family["family"], family["unserved"]) == ("marlin", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "vllm"], "--target vllm needs --tree"),
        (["--target", "vllm-0.33", "--family", "marlon"], "unknown kernel family 'marlon'"),
        (["--target", "vllm-0.33", "--formats", "gptq"], "--formats gptq is not known; known are awq-int4,"),
        (["--target", "vllm-0.33", "--act", "f8"], "--act f8 is not known; known are f16, bf16, int8, fp8"),
        (["--target", "vllm-0.33", "--group-size", "0"], "--group-size 0 is not known; known are -1,"),
        (["--target", "vllm-0.33", "--arch", "abc"], "'abc' is not a GPU architecture"),
        (["--target", "vllm-0.33", "missing.json"], "cannot read missing.json"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_config_without_a_type_needs_one(tmp_path: Path) -> None:
    config = json.loads(LLAMA.read_text())
    config.pop("dtype", None)
    config.pop("torch_dtype", None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="--act"):
        requests(Narrowing(models=(file,)))
    found = requests(Narrowing(models=(file,), activations=("int8",)))
    assert found is not None
    assert {one.output for one in found} == {"f16", "bf16"}


def test_unknown_names_are_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="--formats u4 is not known"):
        narrow(FULL["0.20"], job(Narrowing(models=(Path("missing.json"),), formats=("u4",))))


def test_generates_for_the_folder_of_a_model_and_again_when_its_config_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads(LLAMA.read_text())
    (model / "config.json").write_text(json.dumps(config))

    def generate() -> str:
        arguments = ["--target", "vllm-0.20", "--family", "marlin", "--arch", "9.0a", "--models", str(model)]
        assert main(["generate", *arguments, "--out", str(tmp_path / "out")]) == 0
        return capsys.readouterr().out

    assert "2 new" in generate()
    assert "2 unchanged" in generate()
    config["quantization_config"]["group_size"] = 64
    (model / "config.json").write_text(json.dumps(config))
    assert "2 changed" in generate()
