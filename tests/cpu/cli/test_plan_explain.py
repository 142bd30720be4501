"""`billhook plan` and `billhook explain`, from arguments to text and exit code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from billhook import driver
from billhook.arch import parse, parse_list
from billhook.catalog import load
from billhook.cli import main
from billhook.cli.columns import align, fold
from billhook.config import GemmTypes, Problem
from billhook.dtypes import BF16, U4B8
from billhook.models import load_model
from billhook.plan import from_json, make_plan
from billhook.select import select

EXAMPLES = Path(__file__).parents[3] / "examples/models"
QWEN = str(EXAMPLES / "qwen3-30b-a3b-gptq-int4/config.json")
MIXTRAL = str(EXAMPLES / "mixtral-8x7b-gptq")
SHAPE = ["--n", "4096", "--k", "4096"]


def test_plan_tells_layers_kernels_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", QWEN, "--arch", "9.0a,8.6", "--max-tokens", "16"]) == 0
    text = capsys.readouterr().out
    assert "qwen3-30b-a3b-gptq-int4, for 1 to 16 tokens\n" in text
    plan = make_plan([load_model(QWEN)], parse_list("9.0a,8.6"), 16)
    for arch in plan.archs:
        assert f"{sum(kernel.arch == arch for kernel in plan.kernels)} kernels for {arch}" in text
    for kernel in plan.kernels:
        assert f"\n{kernel.name}\n" in text
        for reason in kernel.reason.split(" | "):
            assert f"    why     {reason}\n" in text
        for need in kernel.needed_by:
            name = need.layer.rpartition("/")[2]
            assert re.search(rf"serves  {need.first} to {need.last} tokens of .*\b{name}\b", text)


def test_activations_of_8_bits_are_planned_with_the_models_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", QWEN, "--act", "s8", "--json"]) == 0
    plan = from_json(capsys.readouterr().out)
    assert {layer.types for layer in plan.layers} == {"s8_u4b8_bf16_bf16"}
    assert plan.kernels
    assert main(["plan", QWEN, "--act", "f16", "--json"]) == 0
    assert {one.types for one in from_json(capsys.readouterr().out).layers} == {"f16_u4b8_f16_f16"}
    assert main(["explain", *SHAPE, "--m", "1024", "--act", "e4m3fn", "--group-size", "-1"]) == 0
    assert "e4m3fn_u4b8_bf16_bf16" in capsys.readouterr().out
    old = ["--m", "1", "--act", "s8", "--arch", "7.5"]
    assert main(["explain", *SHAPE, *old]) == 2
    assert "the output must be f16" in capsys.readouterr().err
    assert main(["explain", *SHAPE, *old, "--output", "f16"]) == 0


def test_plan_takes_how_a_model_will_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((EXAMPLES / "llama-3.1-8b-gptq-int4/config.json").read_text())
    inputs = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    section = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups,
        "ignore": ["lm_head"],
    }  # fmt: skip
    file = tmp_path / "asks.json"
    file.write_text(json.dumps(config | {"quantization_config": section}))
    loaded = load_model(file)
    asked: list[tuple[list[str], dict[str, Any]]] = [
        ([], {}),
        (["--unfused"], {"fused": False}),
        (["--narrow-activations"], {"narrow_activations": True}),
        (["--fold"], {"narrow_activations": "folded"}),
        (["--fold", "--narrow-activations", "--unfused"], {"narrow_activations": "folded", "fused": False}),
    ]
    for options, same in asked:
        assert main(["plan", str(file), "--json", "--max-tokens", "64", *options]) == 0
        plan = from_json(capsys.readouterr().out)
        assert plan == make_plan([loaded], parse_list("9.0a"), 64, **same)
    assert main(["plan", str(file), "--fold", "--act", "s8"]) == 2
    assert "--act" in capsys.readouterr().err


def test_plan_makes_do_with_fewer_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    llama = EXAMPLES / "llama-3.1-8b-gptq-int4"
    assert main(["plan", str(llama), "--within", "20", "--json"]) == 0
    plan = from_json(capsys.readouterr().out)
    assert plan == make_plan([load_model(llama)], parse_list("9.0a"), within=0.2)


def test_tiles_are_chosen_for_other_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    llama = EXAMPLES / "llama-3.1-8b-gptq-int4"
    assert main(["plan", str(llama), "--multiprocessors", "114", "--json"]) == 0
    plan = from_json(capsys.readouterr().out)
    assert plan == make_plan([load_model(llama)], parse_list("9.0a"), catalog=load().on(114))
    named = []
    for more in ([], ["--multiprocessors", "132"], ["--multiprocessors", "114"]):
        assert main(["explain", "--m", "300", "--n", "4096", "--k", "4096", "--json", *more]) == 0
        named.append(json.loads(capsys.readouterr().out)[0]["kernel"])
    assert named[0] == named[1] != named[2]


def test_plan_of_several_models_tells_them_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", QWEN, MIXTRAL, "--tp", "1,2", "--max-tokens", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^tp2/w13 +14336 ", text, re.MULTILINE)
    for layer in ("qwen3-30b-a3b-gptq-int4/tp1/w2", "mixtral-8x7b-gptq/tp2/w2"):
        assert re.search(rf"serves  1 token of .*{layer}\b", text)


def test_plan_tells_notes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = (EXAMPLES / "llama-3.1-8b-gptq-int4/config.json").read_text()
    (tmp_path / "new.json").write_text(text.replace("LlamaForCausalLM", "NewForCausalLM"))
    assert main(["plan", str(tmp_path / "new.json")]) == 0
    assert "note: new: architecture 'NewForCausalLM' is unknown" in capsys.readouterr().out


def test_plan_json_is_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", QWEN, MIXTRAL, "--json", "--tp", "1,2", "--act", "f16", "--arch", "sm_90a"]) == 0
    plan = from_json(capsys.readouterr().out)
    assert plan.max_tokens == 8192
    assert plan.archs == ("9.0a",)
    assert [layer.tp for layer in plan.layers] == [1] * 4 + [2] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "MODEL"),
        (["no-such-folder"], "no-such-folder"),
        ([QWEN, "--arch", "abc"], "abc"),
        ([QWEN, "--arch", ""], "no GPU architecture"),
        ([QWEN, "--arch", "7.0"], "7.0"),
        ([QWEN, "--arch", "7.5"], "8.0 or later"),
        ([QWEN, "--tp", "0"], "--tp"),
        ([QWEN, "--tp", "3"], "3"),
        ([QWEN, "--tp", "4"], "group_size 128"),
        ([QWEN, "--max-tokens", "0"], "max-tokens"),
        ([QWEN, "--act", "f32"], "f32"),
        ([QWEN, "--within", "many"], "'many'"),
        ([QWEN, "--multiprocessors", "0"], "1 to 1024 multiprocessors (got 0)"),
        ([QWEN, "--multiprocessors", "-3"], "(got -3)"),
        ([QWEN, "--multiprocessors", "1025"], "(got 1025)"),
        ([QWEN, "--multiprocessors", "all"], "'all'"),
        ([QWEN, QWEN], "two models"),
    ],
)
def test_plan_refuses(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert word in captured.err
    assert not captured.out


def test_native_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "gpus", list)
    assert main(["plan", QWEN, "--arch", "native"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("counts", "chosen"), [((78,), 78), ((78, 78), 78), ((78, 132), 132)], ids=str)
def test_native_chooses_for_the_gpus_here_if_they_agree(
    counts: tuple[int, ...],
    chosen: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = [driver.Gpu("H20", parse("9.0a"), sms, 1 << 36) for sms in counts]
    monkeypatch.setattr(driver, "gpus", lambda: here)
    llama = str(EXAMPLES / "llama-3.1-8b-gptq-int4")
    assert main(["plan", llama, "--arch", "native", "--json"]) == 0
    assert from_json(capsys.readouterr().out).multiprocessors == chosen
    assert main(["plan", llama, "--arch", "native", "--multiprocessors", "114", "--json"]) == 0
    assert from_json(capsys.readouterr().out).multiprocessors == 114


def test_explain_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *SHAPE, "--m", "77", "--arch", "8.6", "--experts", "4", "--top-k", "4"]) == 0
    text = capsys.readouterr().out
    problem = Problem(77, 4096, 4096, GemmTypes(BF16, U4B8, BF16, BF16), 128, num_experts=4, top_k=4)
    choice = select(problem, parse("8.6"))
    assert "4 experts (top_k 4, 77 rows each)" in text
    assert f"served by  {choice.config}\nbecause    {choice.reason}\n" in text
    for one in choice.rejected:
        assert re.search(rf"{one.config.tile} +{re.escape(one.why_not)}", text)


def test_explain_a_layer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", MIXTRAL, "--layer", "w2", "--m", "64", "--tp", "2", "--act", "f16"]
    assert main(["explain", *arguments]) == 0
    text = capsys.readouterr().out
    assert "m=128 n=4096 k=7168, 8 experts (top_k 1, 16 rows each), f16_u4b8_f16_f16, group_size -1" in text


def test_explain_takes_rules_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *SHAPE, "--m", "64", "--rules", "machete-0.20"]) == 0
    assert "because    machete-0.20 rule 10 (dense, rows > 32, n <= 6144" in capsys.readouterr().out
    assert main(["explain", *SHAPE, "--m", "64", "--rules", "nothing"]) == 2
    assert "rules are native" in capsys.readouterr().err


def test_explain_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *SHAPE, "--m", "1", "--arch", "8.0,9.0a", "--group-size", "-1", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [one["arch"] for one in answers] == ["8.0", "9.0a"]
    for one in answers:
        assert one["kernel"].startswith("marlin_bf16_u4b8_bf16_bf16_gch_m8")
        assert one["kernel"] not in {other["kernel"] for other in one["rejected"]}
        assert all(other["why"] for other in one["rejected"])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--m", "1"], "--n and --k"),
        (["--n", "4096", "--k", "4096"], "--m"),
        ([*SHAPE, "--m", "0"], "m must"),
        ([*SHAPE, "--m", "1", "--layer", "w2"], "--layer needs --model"),
        ([*SHAPE, "--m", "1", "--tp", "2"], "--tp needs --model"),
        ([*SHAPE, "--m", "1", "--experts", "8"], "top_k"),
        ([*SHAPE, "--m", "1", "--experts", "8", "--top-k", "9"], "top_k"),
        ([*SHAPE, "--m", "1", "--arch", "13.7"], "13.7"),
        (["--model", MIXTRAL, "--m", "1"], "qkv, o, w13, w2"),
        (["--model", MIXTRAL, "--m", "1", "--layer", "up"], "'up'"),
        (["--model", MIXTRAL, "--m", "1", "--layer", "w2", "--n", "64"], "--n"),
    ],
)
def test_explain_refuses(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", *arguments]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--n", "4096", "--k", "4100", "--m", "1"], "4100"),
        ([*SHAPE, "--m", "1", "--arch", "7.5"], "8.0 or later"),
        ([*SHAPE, "--m", "1", "--group-size", "16"], "group_size"),
    ],
)
def test_explain_tells_why_no_kernel_serves(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == 2
    captured = capsys.readouterr()
    assert word in captured.err
    assert word in captured.out
    assert "m8n128k256" in captured.out


def test_wide_lines_continue_below_their_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["name  why it is so", "   mended by hand", "one word after another"]
    assert list(fold(lines)) == lines
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "14")
    assert list(fold(lines)) == [
        "name  why it", "      is so", "   mended by", "   hand", "one word after", "    another",
    ]  # fmt: skip


def test_columns() -> None:
    assert align([("name", "n", "k"), ("a", 1, "-"), ("bcd", 10, 3)]) == [
        "name   n  k",
        "a      1  -",
        "bcd   10  3",
    ]
