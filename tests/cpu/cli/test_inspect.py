"""`billhook inspect`, from a checkpoint's folder to text and exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cpu.checkpoint.written import (
    COMPRESSED,
    GPTQ,
    LLAMA,
    MOE,
    Shapes,
    awq,
    fp8_block,
    gptq,
    model,
    packed,
    plain,
    save,
    write,
)

from billhook.arch import parse_list
from billhook.cli import main
from billhook.models import layers, load_model
from billhook.select import select

LLAMA_GPTQ = LLAMA | {"quantization_config": GPTQ}
MOE_GPTQ = MOE | {"quantization_config": GPTQ}
Q = "model.layers.1.self_attn.q_proj"


def test_shows_layers_gemms_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, MOE_GPTQ, model(MOE, gptq), shards=3)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^model\.layers\.0\.\.2\.mlp\.experts\.0\.\.3\.gate_proj +12 +gptq 4-bit +u4b8 +128 +256 .* w13$",
        text,
        re.M,
    )
    assert re.search(r"^model\.layers\.0\.\.2\.mlp\.gate +3 +16-bit float .* -$", text, re.M)
    assert "w13: 256 x 256, 4 experts, gptq 4-bit, a scale per 64, 3 layers\n" in text
    assert "4 of 4 GEMMs served" in text


def test_a_kernel_has_one_line_of_all_its_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    (first, *_) = json.loads(capsys.readouterr().out)["gemms"]
    assert main(["inspect", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    9.0a")]
    lines = lines[: len({one["kernel"] for one in first["targets"][0]["kernels"]})]
    found = []
    for line in lines:
        _, kernel, tokens = line.split(maxsplit=2)
        for one in tokens.removesuffix(" tokens").split(", "):
            low, _, high = one.partition(" to ")
            found.append((int(low), int(high or low), kernel))
    wanted = [(one["first"], one["last"], one["kernel"]) for one in first["targets"][0]["kernels"]]
    assert sorted(found) == wanted


def test_kernels_are_those_of_the_selection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, MOE_GPTQ, model(MOE, gptq))
    assert main(["inspect", str(tmp_path), "--json", "--tp", "2", "--arch", "8.0,9.0a", "--act", "f16"]) == 0
    found = {gemm["name"]: gemm for gemm in json.loads(capsys.readouterr().out)["gemms"]}
    config = tmp_path / "f16.json"
    config.write_text(json.dumps(MOE_GPTQ | {"torch_dtype": "float16"}))
    for layer in layers(load_model(config), tp=2):
        gemm = found.pop(layer.name)
        assert (gemm["n"], gemm["k"], gemm["count"]) == (layer.n, layer.k, layer.count)
        for target, arch in zip(gemm["targets"], parse_list("8.0,9.0a"), strict=True):
            ends = [0, *(one["last"] for one in target["kernels"])]
            assert ends[-1] == 8192
            for one, before in zip(target["kernels"], ends, strict=False):
                assert one["first"] == before + 1
                for tokens in (one["first"], one["last"]):
                    assert select(layer.problem(tokens), arch).config.name == one["kernel"]
    assert not found


def test_bytes_are_those_of_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    with (tmp_path / "model.safetensors").open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    sizes = found["bytes"]
    assert sizes["total"] == (tmp_path / "model.safetensors").stat().st_size - 8 - header
    assert sizes["quantized"] + sizes["unquantized"] + sizes["other"] == sizes["total"]
    assert sizes["unquantized"] == 32 * 256 * 2  # lm_head
    (down,) = (row for row in found["layers"] if row["gemm"] == "down")
    assert down["bytes"] == 3 * (64 * 256 * 4 + 8 * 32 * 4 + 8 * 256 * 2 + 512 * 4)


@pytest.mark.parametrize(
    ("config", "linear", "words"),
    [
        (COMPRESSED, packed, ["pack-quantized 4-bit", "4 of 4 GEMMs"]),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq, ["gptq_v2 4-bit", "4 of 4 GEMMs"]),
        (GPTQ | {"desc_act": True}, gptq, ["gptq 4-bit", "4 of 4 GEMMs"]),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, awq, ["awq 4-bit", "a scale per 64"]),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8_block, ["fp8 8-bit", "per 128x128"]),
        ({"quant_method": "quip", "bits": 4}, awq, ["awq 4-bit", "'quip' is not built yet", "0 of 4 GEMMs"]),
        (None, plain, ["16-bit float", "no layer is quantized"]),
    ],
)
def test_shows_each_format_and_why_no_kernel_serves_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any] | None,
    linear: Callable[[int, int], Shapes],
    words: list[str],
) -> None:
    write(tmp_path, LLAMA | {"quantization_config": config}, model(LLAMA, linear))
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for word in words:
        assert word in text


def test_some_layers_may_be_left_unquantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
    config = LLAMA | {"quantization_config": COMPRESSED | {"ignore": ["lm_head", *places]}}
    tensors = {
        name: value for name, value in model(LLAMA, packed).items() if not name.startswith(tuple(places))
    }
    tensors |= {f"{place}.weight": ("BF16", (256 if "q_" in place else 128, 256)) for place in places}
    write(tmp_path, config, tensors)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "model.layers.0,2.self_attn.q_proj" in text
    assert "not quantized: left to a dense GEMM" in text
    assert "4 of 5 GEMMs served" in text


def stacked_experts(place: str, experts: int, **sizes: tuple[int, int]) -> Shapes:
    """Return the tensors of experts that are stacked as in gpt-oss."""
    tensors: Shapes = {}
    for name, (n, k) in sizes.items():
        tensors[f"{place}.{name}_blocks"] = ("U8", (experts, n, k // 32, 16))
        tensors[f"{place}.{name}_scales"] = ("U8", (experts, n, k // 32))
        tensors[f"{place}.{name}_bias"] = ("BF16", (experts, n))
    return tensors


def test_reads_stacked_experts_of_unknown_architectures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["Unknown"], "quantization_config": {"quant_method": "mxfp4"}}
    place = "model.layers.0.mlp.experts"
    tensors = stacked_experts(place, 4, down_proj=(64, 96))
    write(tmp_path, config, tensors)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["layers"]
    assert (row["format"], row["n"], row["k"], row["num_experts"]) == ("mxfp4", 64, 96, 4)
    (gemm,) = found["gemms"]
    assert (gemm["name"], gemm["targets"][0]["kernels"]) == ("experts.w2", [])
    assert "num_experts_per_tok" in gemm["targets"][0]["why_none"]
    assert "'Unknown' is not built yet" in found["notes"][0]
    del tensors[f"{place}.down_proj_scales"]
    write(tmp_path, config, tensors)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "down_proj_scales is missing" in capsys.readouterr().err


def test_says_which_inputs_may_be_quantized(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parents[2] / "data/checkpoints/float-quantized-static"
    assert "inputs of 1 layer are quantized to e4m3fn" in inspect(folder, capsys)["notes"][-1]
    kernels = inspect(folder, capsys, "--act", "e4m3fn")["gemms"][0]["targets"][0]["kernels"]
    assert all("_e4m3fn_e4m3fn_" in one["kernel"] for one in kernels) and kernels


def inspect(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert main(["inspect", str(folder), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("config", [LLAMA, MOE], ids=["dense", "experts"])
def test_kernels_serve_models_that_are_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any]
) -> None:
    """Their GEMMs are told by the modules' names, and the same as those of a known model."""
    section = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    write(tmp_path, config | section, model(config, fp8_block))
    known = inspect(tmp_path, capsys)
    (tmp_path / "config.json").write_text(json.dumps(config | section | {"architectures": ["Unknown"]}))
    unknown = inspect(tmp_path, capsys)

    def kernels(found: Any) -> set[str]:
        return {
            str((one["n"], one["k"], one["num_experts"], one["count"], one["targets"]))
            for one in found["gemms"]
        }

    assert kernels(unknown) == kernels(known) != set()
    assert {one["packed"] for one in unknown["layers"]} == {"fp8", None}
    assert "self_attn.qkv_proj" in {one["gemm"] for one in unknown["layers"]}
    assert inspect(tmp_path, capsys, "--tp", "2")["gemms"] == []  # how it is split is not known


def test_kernels_serve_a_quantized_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = model(LLAMA, gptq)
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head.{part}": value for part, value in gptq(512, 256).items()}
    write(tmp_path, LLAMA | {"quantization_config": GPTQ | {"lm_head": True}}, tensors)
    found = inspect(tmp_path, capsys)
    head = found["gemms"][-1]
    assert (head["name"], head["n"], head["k"], head["count"]) == ("lm_head", 512, 256, 1)
    assert head["targets"][0]["kernels"]
    assert len(inspect(tmp_path, capsys, "--tp", "2")["gemms"]) == 4


def test_projections_stored_in_different_ways_are_served_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = model(LLAMA, gptq)
    for index in range(3):
        name = f"model.layers.{index}.self_attn.v_proj"
        tensors |= {f"{name}.{part}": value for part, value in gptq(128, 256, bits=8).items()}
    dynamic = {"dynamic": {r"+:.*\.v_proj": {"bits": 8}}}
    write(tmp_path, LLAMA | {"quantization_config": GPTQ | dynamic}, tensors)
    found = inspect(tmp_path, capsys)
    served = {one["name"]: (one["n"], one["targets"][0]["kernels"] != []) for one in found["gemms"]}
    assert served["self_attn.q_proj"] == (256, True)
    assert served["self_attn.v_proj"] == (128, True)
    assert "qkv" not in served
    packed = {one["name"]: one["packed"] for one in found["layers"]}
    assert packed["model.layers.0..2.self_attn.v_proj"] == "u8b128"
    split = {one["name"]: one["targets"][0] for one in inspect(tmp_path, capsys, "--tp", "2")["gemms"]}
    assert "in different ways" in split["qkv"]["why_none"]


def test_what_is_multiplied_with_must_be_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, LLAMA_GPTQ | {"torch_dtype": "float32"}, model(LLAMA, gptq))
    found = inspect(tmp_path, capsys)
    assert all("--act" in one["targets"][0]["why_none"] for one in found["gemms"])
    assert inspect(tmp_path, capsys, "--act", "f16")["gemms"][0]["targets"][0]["kernels"]


def test_gpt_oss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    config = LLAMA | {
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 128,
        "quantization_config": section,
    }
    tensors: Shapes = {}
    for index in range(3):
        place = f"model.layers.{index}"
        for name, n in (("q", 256), ("k", 128), ("v", 128), ("o", 256)):
            tensors[f"{place}.self_attn.{name}_proj.weight"] = ("BF16", (n, 256))
            tensors[f"{place}.self_attn.{name}_proj.bias"] = ("BF16", (n,))
        tensors |= stacked_experts(f"{place}.mlp.experts", 4, gate_up_proj=(256, 256), down_proj=(256, 128))
    write(tmp_path, config, tensors)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    gemms = {one["name"]: one for one in json.loads(capsys.readouterr().out)["gemms"]}
    assert {name: (one["n"], one["k"], one["num_experts"], one["count"]) for name, one in gemms.items()} == {
        "qkv": (512, 256, 0, 3),
        "o": (256, 256, 0, 3),
        "w13": (256, 256, 4, 3),
        "w2": (256, 128, 4, 3),
    }
    assert gemms["qkv"]["targets"][0]["why_none"] == "not quantized: left to a dense GEMM"


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        ({}, {f"{Q}.scales": None}, [f"{Q}.scales is missing"]),
        (
            {},
            dict.fromkeys((f"{Q}.{part}" for part in gptq(1, 32)), None),
            ["config.json", Q, "no safetensors"],
        ),
        ({}, {f"{Q}.extra": ("F32", (1,))}, [f"{Q}.extra is extra"]),
        ({"num_hidden_layers": 2}, {}, ["no place for model.layers.2"]),
        ({"num_hidden_layers": 4}, {}, ["model.layers.3", "no safetensors"]),
        ({"intermediate_size": 576}, {}, ["up_proj together", "1024", "1152"]),
        ({"num_attention_heads": 8, "head_dim": 64}, {}, ["q_proj", "512 output features", "768"]),
        ({"attention_bias": True}, {}, ["self_attn.q_proj has no bias"]),
        ({"quantization_config": GPTQ | {"group_size": 128}}, {}, ["a scale", "64", "group_size 128"]),
        ({"quantization_config": GPTQ | {"bits": 8}}, {}, ["4 bits", "8 bits"]),
        ({"quantization_config": COMPRESSED}, {}, ["gptq", "compressed-tensors"]),
        ({"quantization_config": None}, {}, ["gptq", "quantization_config is missing"]),
        ({"quantization_config": 3}, {}, ["quantization_config", "3"]),
        ({"quantization_config": GPTQ | {"dynamic": {"-:.*q_proj": {}}}}, {}, ["q_proj", "not quantized"]),
        ({"hidden_size": None}, {}, ["hidden_size"]),
        (
            {
                "quantization_config": COMPRESSED
                | {
                    "config_groups": {
                        "a": {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": 0}}
                    }
                }
            },
            {},
            ["config_groups.a.weights.group_size", "0"],
        ),
    ],
)
def test_refuses_what_does_not_fit_the_config(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    change: dict[str, Any],
    words: list[str],
) -> None:
    tensors = model(LLAMA, gptq) | change
    write(tmp_path, LLAMA_GPTQ | config, {name: value for name, value in tensors.items() if value})
    assert main(["inspect", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in words:
        assert word in captured.err


def test_refuses_projections_that_should_be_quantized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, plain))
    assert main(["inspect", str(tmp_path)]) == 2
    assert "unquantized weights" in capsys.readouterr().err


def test_refuses_another_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, MOE_GPTQ | {"num_experts": 3}, model(MOE, gptq))
    assert main(["inspect", str(tmp_path)]) == 2
    assert "no place for model.layers.0.mlp.experts.3." in capsys.readouterr().err


def _cut(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _rename(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").rename(folder / "elsewhere.safetensors")


def _lose_index_and_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def _lose_all(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def _edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return damage


def _duplicate(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    save(folder / "more.safetensors", {f"{Q}.scales": ("F16", (4, 256))})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, ["model-00002-of-00002.safetensors", "truncated"]),
        (_rename, ["index.json names model-00002-of-00002.safetensors"]),
        (_lose_index_and_shard, ["lacks model-00002-of-00002.safetensors"]),
        (_lose_all, ["no *.safetensors file"]),
        (_edit_index(lambda names: names.pop(f"{Q}.scales")), [f"{Q}.scales", "does not name it"]),
        (
            _edit_index(lambda names: names.update({"x.weight": names[f"{Q}.scales"]})),
            ["x.weight", "missing"],
        ),
        (_edit_index(lambda names: names.update(x="../a.safetensors")), ["'x'", "'../a.safetensors'"]),
        (_edit_index(lambda names: names.update(x=3)), ["weight_map.x", "3"]),
        (_edit_index(lambda names: names.clear()), ["weight_map"]),
        (_duplicate, [f"{Q}.scales", "more.safetensors", "of-00002.safetensors"]),
        (lambda folder: (folder / "config.json").unlink(), ["has no config.json"]),
        (
            lambda folder: (folder / "config.json").rename(folder / "billhook-pack.json"),
            ["not packed to the end", "billhook pack"],
        ),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json", "not JSON"]),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), ["index.json", "list"]),
    ],
)
def test_refuses_damaged_folders(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: list[str],
) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq), shards=2)
    damage(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_tells_which_files_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq))
    (tmp_path / "consolidated.safetensors").write_bytes(b"not even read")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "not read, since model.safetensors is there: consolidated.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--tp", "3"], "3"), (["--arch", "abc"], "abc"), (["--act", "f8"], "f8"), (["--tp", "0"], "--tp")],
)
def test_refuses_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq))
    assert main(["inspect", str(tmp_path), *arguments]) == 2
    assert word in capsys.readouterr().err


def test_refuses_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "gone")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_hides_no_standard_module_and_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, LLAMA_GPTQ, model(LLAMA, gptq))
    code = (
        "import sys; from billhook.cli import main; assert main(['inspect', sys.argv[1]]) == 0; "
        "import inspect; assert inspect.signature(main); "
        "assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
