"""Which modules are quantized and how: every spelling of exceptions, every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billhook.errors import BillhookError, ConfigError, InputError, UnsupportedError
from billhook.models import Layer, layers, load_model

EXAMPLES = Path(__file__).parents[3] / "examples/models"
GPTQ = "llama-3.1-8b-gptq-int4"
COMPRESSED = "deepseek-r1-distill-llama-8b-quantized-w4a16"


def read(tmp_path: Path, base: str, change: dict[str, Any]) -> dict[str, Layer]:
    """Return the layers of an example whose quantization_config is changed."""
    config = json.loads((EXAMPLES / base / "config.json").read_text())
    config["quantization_config"] |= change
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    return {layer.name: layer for layer in layers(load_model(file))}


def counts(found: dict[str, Layer]) -> dict[str, int]:
    return {name: layer.count for name, layer in found.items()}


REST = {"qkv": 32, "o": 32, "gate_up": 32}
ALL = REST | {"down": 32}
QKV_MLP = {"qkv": 32, "gate_up": 32, "down": 32}
ALL_BUT_GATE_UP = {name: count for name, count in ALL.items() if name != "gate_up"}
METHODS = ("bitsandbytes", "quip", "new")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"modules_to_not_convert": ["lm_head", "gate"]}, ALL),  # a router's name, not a part of gate_proj
        ({"modules_to_not_convert": ["self_attn"]}, {"gate_up": 32, "down": 32}),
        ({"modules_to_not_convert": ["model.layers.3.mlp.down_proj"]}, ALL | {"down": 31}),
        ({"modules_in_block_to_quantize": [["mlp.gate_proj", "mlp.up_proj"]]}, {"gate_up": 32}),
        ({"modules_in_block_to_quantize": ["self_attn.qkv_proj", "mlp."]}, QKV_MLP),
        ({"modules_in_block_to_quantize": []}, ALL),
        ({"dynamic": {r"-:model\.layers\.[01]\.": {}}}, dict.fromkeys(ALL, 30)),
        ({"dynamic": {r"-:.*\.self_attn\.qkv_proj": {}}}, {"o": 32, "gate_up": 32, "down": 32}),
        ({"dynamic": {r"+:.*\.7\..*down": {"group_size": 32}}}, REST | {"down_g32": 1, "down_g128": 31}),
        ({"dynamic": {r"-:.*gate": {}, r"-:.*\.up_proj": {}}}, ALL_BUT_GATE_UP),
        ({"dynamic": {r".*(gate|up)_proj": {"bits": 3}, r"-:.*(gate|up)_": {}}}, ALL_BUT_GATE_UP),
        # the first match counts
        ({"dynamic": {r".*down": {"group_size": 64}, r".*down_proj": {"bits": 8}}}, ALL),
        ({"dynamic": {"lm_head": {"bits": 8}}}, ALL),
        ({"dynamic": None, "group_size": -1, "desc_act": True}, ALL),  # one group: no order
    ],
)  # fmt: skip
def test_gptq_exceptions(tmp_path: Path, change: dict[str, Any], expected: dict[str, int]) -> None:
    assert counts(read(tmp_path, GPTQ, change)) == expected


GROUP = {
    "targets": ["Linear"],
    "input_activations": None,
    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128},
}


def group(targets: list[str] | None = None, **weights: object) -> dict[str, Any]:
    return GROUP | {"targets": targets or ["Linear"], "weights": GROUP["weights"] | weights}


AUTO_ROUND = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "sym": True}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ALL),
        ({"block_name_to_quantize": "model.layers"}, ALL),
        ({"block_name_to_quantize": ["model.layers.3.", "model.layers.4."]}, dict.fromkeys(ALL, 2)),
        ({"block_name_to_quantize": "visual.blocks,model.layers.3."}, dict.fromkeys(ALL, 1)),
        ({"extra_config": {"model.layers.3.mlp.down_proj": {"bits": 16}}}, ALL | {"down": 31}),
        (
            {"extra_config": {r".*layers\.[01]\.mlp\.down_proj.*": {"group_size": 64}}},
            REST | {"down_g64": 2, "down_g128": 30},
        ),
        (  # a name comes before a pattern
            {"extra_config": {r".*down_proj": {"bits": 16}, "model.layers.0.mlp.down_proj": {"bits": 4}}},
            REST | {"down": 1},
        ),
        ({"packing_format": "auto_round:auto_awq", "sym": False}, ALL),
    ],
)  # fmt: skip
def test_auto_round_exceptions(tmp_path: Path, change: dict[str, Any], expected: dict[str, int]) -> None:
    found = read(tmp_path, GPTQ, AUTO_ROUND | change)
    assert counts(found) == expected
    weight = "u4" if "packing_format" in change else "u4b8"
    assert {layer.types.split("_")[1] for layer in found.values()} == {weight}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ignore": ["lm_head", "model.layers.0.self_attn.o_proj"]}, ALL | {"o": 31}),
        ({"ignore": ["re:.*self_attn.*"]}, {"gate_up": 32, "down": 32}),
        ({"ignore": ["model.layers.0.mlp.gate_up_proj"]}, ALL | {"gate_up": 31}),
        ({"config_groups": {"g": group(["re:.*mlp.*"])}}, {"gate_up": 32, "down": 32}),
        ({"config_groups": {"g": group(["model.layers.1.mlp.down_proj"])}}, {"down": 1}),
        ({"config_groups": {"a": group(), "b": group(["re:.*down_proj"], group_size=32)}}, ALL),
    ],
)
def test_compressed_tensors_exceptions(
    tmp_path: Path, change: dict[str, Any], expected: dict[str, int]
) -> None:
    assert counts(read(tmp_path, COMPRESSED, change)) == expected


def test_targets_count_in_the_order_of_compressed_tensors(tmp_path: Path) -> None:
    """Names come before patterns, those in alphabetic order; of groups with one target the last wins."""
    groups = {
        "a": group(["re:.*mlp.*", "re:.*down_proj"], group_size=64),
        "b": group(["model.layers.0.mlp.down_proj", "Linear"], group_size=32),
        "c": group(["Linear", "re:.*o_proj"], group_size=128),
        "d": group(["re:.*o_proj"], group_size=-1, strategy="channel"),
    }
    read(tmp_path, COMPRESSED, {"config_groups": groups})
    found = load_model(tmp_path / "config.json").quantization

    def size(name: str) -> int:
        stored = found.stored([f"model.layers.{name}"])
        assert stored is not None
        return stored.group_size

    assert size("0.mlp.down_proj") == 32
    assert size("1.mlp.down_proj") == 64
    assert size("1.self_attn.o_proj") == -1
    assert size("1.self_attn.q_proj") == 128


def test_a_named_target_comes_before_all_linear_layers(tmp_path: Path) -> None:
    groups = {"a": group(), "b": group(["re:.*down_proj"], group_size=32)}
    assert read(tmp_path, COMPRESSED, {"config_groups": groups})["down"].group_size == 32


def float8(strategy: str, **more: object) -> dict[str, Any]:
    return {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": strategy} | more}


def of_floats(bits: int, strategy: str, size: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "float", "strategy": strategy, "group_size": size}
    return {"config_groups": {"a": {"targets": ["Linear"], "weights": weights}}}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "GEMM"}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


@pytest.mark.parametrize(
    ("base", "change", "types", "group_size"),
    [
        (GPTQ, {"bits": 8}, "u8b128_f16", 128),
        (GPTQ, {"sym": False}, "u4_f16", 128),
        (GPTQ, {"sym": False, "bits": 8, "group_size": 32}, "u8_f16", 32),
        (GPTQ, AWQ, "u4_f16", 64),
        (GPTQ, FP8, "e4m3fn_f16", 128),
        (GPTQ, FP8 | {"weight_block_size": None}, "e4m3fn_f16", -1),
        (GPTQ, {"quant_method": "fbgemm_fp8"}, "e4m3fn_f16", -1),
        (GPTQ, {"quant_method": "mxfp4"}, "e2m1f_e8m0fnu", 32),
        (GPTQ, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "e2m1f_e4m3fn", 16),
        (GPTQ, {"quant_method": "modelopt", "quant_algo": "FP8", "group_size": None}, "e4m3fn_f16", -1),
        (
            GPTQ,
            {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}},
            "e4m3fn_f16",
            -1,
        ),
        (COMPRESSED, {"config_groups": {"a": group(num_bits=8)}}, "u8b128_bf16", 128),
        (COMPRESSED, {"config_groups": {"a": group(symmetric=False)}}, "u4_bf16", 128),
        (
            COMPRESSED,
            {
                "format": "int-quantized",
                "config_groups": {"a": group(num_bits=8, strategy="channel") | {"input_activations": {}}},
            },
            "u8b128_bf16",
            -1,
        ),
        (COMPRESSED, {"config_groups": {"a": float8("tensor")}}, "e4m3fn_bf16", -1),
        (COMPRESSED, {"config_groups": {"a": float8("channel")}}, "e4m3fn_bf16", -1),
        (
            COMPRESSED,
            {"config_groups": {"a": float8("block", block_structure=[128, 128])}},
            "e4m3fn_bf16",
            128,
        ),
        (COMPRESSED, of_floats(8, "group", 32), "e4m3fn_e8m0fnu", 32),
        (COMPRESSED, of_floats(4, "group", 32), "e2m1f_e8m0fnu", 32),
        (COMPRESSED, of_floats(4, "tensor_group", 16), "e2m1f_e4m3fn", 16),
    ],
)
def test_every_format(tmp_path: Path, base: str, change: dict[str, Any], types: str, group_size: int) -> None:
    found = read(tmp_path, base, change)
    assert {layer.types.partition("_")[2].rpartition("_")[0] for layer in found.values()} == {types}
    assert {layer.group_size for layer in found.values()} == {group_size}
    assert counts(found) == ALL


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (AWQ | {"modules_to_not_convert": ["model.layers.0.", "lm_head"]}, dict.fromkeys(ALL, 31)),
        (FP8 | {"modules_to_not_convert": ["model.layers.*.self_attn"]}, {"gate_up": 32, "down": 32}),
        (FP8 | {"ignored_layers": ["model.layers.7.mlp.down_proj"]}, REST | {"down": 31}),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["*.layers.1.self_attn*"]},
            {"qkv": 31, "o": 31, "gate_up": 32, "down": 32},
        ),
        (
            {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {
                    "model.layers.0.mlp.down_proj": {"quant_algo": "NVFP4", "group_size": 16},
                    "model.layers.1.mlp.down_proj": {"quant_algo": "FP8"},
                },
            },
            {"down_e2m1f_g16": 1, "down_e4m3fn_g-1": 1},
        ),
        (
            {"dynamic": {r"+:.*\.7\..*down": {"bits": 8}}},
            REST | {"down_u4b8": 31, "down_u8b128": 1},
        ),
    ],
)
def test_exceptions_of_other_methods(
    tmp_path: Path, change: dict[str, Any], expected: dict[str, int]
) -> None:
    if "quant_method" in change:
        change = {"modules_to_not_convert": None, "group_size": 16} | change
    assert counts(read(tmp_path, GPTQ, change)) == expected


def test_activation_order_is_told(tmp_path: Path) -> None:
    assert all(layer.ordered for layer in read(tmp_path, GPTQ, {"desc_act": True}).values())
    assert not any(layer.ordered for layer in read(tmp_path, GPTQ, {}).values())
    change = {"config_groups": {"a": group(actorder="group")}}
    assert all(layer.ordered for layer in read(tmp_path, COMPRESSED, change).values())


def test_activation_order_is_not_split_along_k(tmp_path: Path) -> None:
    read(tmp_path, GPTQ, {"desc_act": True})
    with pytest.raises(UnsupportedError, match=r"splits o along k.*act-order"):
        layers(load_model(tmp_path), tp=2)


def test_experts_in_activation_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"w13 has experts in act-order"):
        read(tmp_path, "qwen3-30b-a3b-gptq-int4", {"desc_act": True})


def test_modelopt_may_declare_its_format_in_a_file_of_its_own(tmp_path: Path) -> None:
    config = json.loads((EXAMPLES / GPTQ / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    section = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head", "*.self_attn*"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": section}))
    found = layers(load_model(tmp_path))
    assert {(layer.name, layer.types) for layer in found} == {
        ("gate_up", "f16_e2m1f_e4m3fn_f16"),
        ("down", "f16_e2m1f_e4m3fn_f16"),
    }


PACKED = {
    "quant_method": "billhook",
    "version": 1,
    "modules": {
        "model.layers.0.self_attn.qkv_proj": {
            "weight": "u4b8",
            "group_size": 32,
            "parts": {f"model.layers.0.self_attn.{name}_proj": 64 for name in "qkv"},
        },
        "model.layers.1.mlp.down_proj": {
            "weight": "e2m1f",
            "scale": "e4m3fn",
            "group_size": 16,
        },
    },
}


def test_packed_folders_say_how_each_module_is_stored(tmp_path: Path) -> None:
    found = read(tmp_path, GPTQ, PACKED)
    assert counts(found) == {"qkv": 1, "down": 1}
    assert (found["qkv"].group_size, found["down"].group_size) == (32, 16)


def test_channel_scales(tmp_path: Path) -> None:
    change = {"config_groups": {"a": group(strategy="channel", group_size=None, actorder="weight")}}
    assert {layer.group_size for layer in read(tmp_path, COMPRESSED, change).values()} == {-1}


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        *((GPTQ, {"quant_method": name}, [name, "not built yet"]) for name in METHODS),
        (GPTQ, AUTO_ROUND | {"packing_format": "auto_round:mxfp4"}, ["AutoRound", "'auto_round:mxfp4'"]),
        (GPTQ, AUTO_ROUND | {"packing_format": "auto_round:auto_awq", "bits": 8}, ["AutoRound", "8-bit int"]),
        (GPTQ, AUTO_ROUND | {"data_type": "mx_fp"}, ["AutoRound", "4-bit mx_fp"]),
        (GPTQ, {"bits": 3}, ["3 bits", "not built yet"]),
        (GPTQ, {"checkpoint_format": "marlin"}, ["marlin", "not built yet"]),
        (GPTQ, {"dynamic": {".*down_proj": {"bits": 2}}}, ["layers.0.mlp.down_proj", "2 bits"]),
        (GPTQ, {"dynamic": {"-:.*q_proj": {}}}, ["q_proj", "different ways"]),
        (GPTQ, {"dynamic": {".*q_proj": {"bits": 8}}}, ["q_proj", "different ways"]),
        (GPTQ, {"quant_method": "awq", "version": "gemv"}, ["gemv", "not built yet"]),
        (GPTQ, {"quant_method": "awq", "bits": 8}, ["AWQ", "8 bits"]),
        (GPTQ, {"quant_method": "awq", "zero_point": False}, ["AWQ without zero points"]),
        (GPTQ, {"quant_method": "fp8", "weight_block_size": [64, 128]}, ["[64, 128]"]),
        (GPTQ, {"quant_method": "fp8", "fmt": "e5m2"}, ["e5m2"]),
        (GPTQ, {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, ["W4A8_AWQ"]),
        (GPTQ, {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32}, ["32", "groups of 16"]),
        (COMPRESSED, {"format": "marlin-24"}, ["marlin-24", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(num_bits=6)}}, ["6-bit", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(type="float")}}, ["4-bit floats", "128"]),
        (COMPRESSED, {"config_groups": {"a": group(type="float", symmetric=False)}}, ["zero points"]),
        (COMPRESSED, {"config_groups": {"a": group(strategy="block")}}, ["block", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": float8("block", block_structure=[64, 64])}}, ["[64, 64]"]),
        (COMPRESSED, {"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparse-24-bitmask"]),
        (COMPRESSED, {"transform_config": {"config_groups": {"u": {}}}}, ["transform_config"]),
    ],
)  # fmt: skip
def test_what_is_not_built(tmp_path: Path, base: str, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read(tmp_path, base, change)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (GPTQ, {"bits": "4"}, ["quantization_config.bits", "'4'"]),
        (GPTQ, {"bits": True}, ["quantization_config.bits", "True"]),
        (GPTQ, {"group_size": 0}, ["quantization_config.group_size", "0"]),
        (GPTQ, {"sym": 1}, ["quantization_config.sym", "1"]),
        (GPTQ, {"dynamic": {"(": {}}}, ["dynamic", "regular expression"]),
        (GPTQ, {"dynamic": {"a": 3}}, ["quantization_config.dynamic.a", "3"]),
        (GPTQ, {"dynamic": {".*": {"bits": "x"}}}, ["quantization_config.dynamic..*.bits", "'x'"]),
        (GPTQ, {"modules_in_block_to_quantize": [[3]]}, ["modules_in_block_to_quantize"]),
        (GPTQ, {"modules_to_not_convert": "lm_head"}, ["modules_to_not_convert", "'lm_head'"]),
        (GPTQ, {"modules_to_not_convert": ["layers"]}, ["no layer is quantized"]),
        (GPTQ, PACKED | {"modules": {"a": {"weight": "u5", "group_size": 32}}}, ["modules.a.weight", "u5"]),
        (COMPRESSED, {"config_groups": {}}, ["config_groups"]),
        (
            COMPRESSED,
            {"config_groups": {"a": {"weights": {}}}},
            ["config_groups.a.weights.num_bits", "missing"],
        ),
        (COMPRESSED, {"ignore": ["re:["]}, ["ignore", "regular expression"]),
    ],
)
def test_wrong_fields(tmp_path: Path, base: str, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, base, change)
    for word in ["config.json", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["cannot read"]),
        (b"", ["not JSON"]),
        (b"{", ["not JSON"]),
        (b"\xff\xfe", ["not JSON"]),
        (b"[1]", ["JSON object", "list"]),
        (b"{}", ["not a quantized model", "quantization_config"]),
        (b'{"quantization_config": 3}', ["quantization_config", "3"]),
        (b'{"quantization_config": {}}', ["quant_method", "missing"]),
    ],
)
def test_unreadable_files(tmp_path: Path, text: bytes | None, words: list[str]) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path)
    for word in ["config.json", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 2**31),
        ("num_hidden_layers", 10**9),
        ("hidden_size", "4096"),
        ("hidden_size", 4097),
        ("num_attention_heads", -1),
        ("num_attention_heads", 1.5),
        ("num_key_value_heads", 5),
        ("num_hidden_layers", None),
        ("intermediate_size", None),
        ("architectures", []),
        ("architectures", "LlamaForCausalLM"),
        ("attention_bias", "no"),
        ("torch_dtype", 16),
    ],
)
def test_wrong_sizes_are_named(tmp_path: Path, field: str, value: object) -> None:
    config = json.loads((EXAMPLES / GPTQ / "config.json").read_text()) | {field: value}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        layers(load_model(file))
    assert field in str(caught.value)
    assert value is None or repr(value) in str(caught.value) or str(value) in str(caught.value)


def test_a_file_of_any_name_names_the_model(tmp_path: Path) -> None:
    file = tmp_path / "my-model.json"
    file.write_text((EXAMPLES / GPTQ / "config.json").read_text())
    assert load_model(file).name == "my-model"
    assert load_model(EXAMPLES / GPTQ / "config.json") == load_model(EXAMPLES / GPTQ)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5000) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([GPTQ, COMPRESSED, "mixtral-8x7b-gptq", "qwen3-30b-a3b-gptq-int4"]), st.data())
def test_any_damage_is_refused_in_words_or_harmless(tmp_path: Path, base: str, data: st.DataObject) -> None:
    config = json.loads((EXAMPLES / base / "config.json").read_text()) | {"num_hidden_layers": 2}
    place = config
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    if config["num_hidden_layers"] != 2:
        return  # a huge number of layers is no error, only slow
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    try:
        found = layers(load_model(file))
    except BillhookError as error:
        assert "config.json" in str(error) or "model.layers" in str(error)
    else:
        assert all(layer.n > 0 and layer.k > 0 for layer in found)
