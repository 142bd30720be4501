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
METHODS = ("awq", "fp8", "mxfp4", "modelopt", "bitsandbytes", "new")


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


def test_a_named_target_comes_before_all_linear_layers(tmp_path: Path) -> None:
    groups = {"a": group(), "b": group(["re:.*down_proj"], group_size=32)}
    assert read(tmp_path, COMPRESSED, {"config_groups": groups})["down"].group_size == 32


def test_channel_scales(tmp_path: Path) -> None:
    change = {"config_groups": {"a": group(strategy="channel", group_size=None, actorder="weight")}}
    assert {layer.group_size for layer in read(tmp_path, COMPRESSED, change).values()} == {-1}


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        *((GPTQ, {"quant_method": name}, [name, "not built yet"]) for name in METHODS),
        (GPTQ, {"bits": 8}, ["8 bits", "not built yet"]),
        (GPTQ, {"sym": False}, ["zero points", "not built yet"]),
        (GPTQ, {"desc_act": True}, ["desc_act", "128", "not built yet"]),
        (GPTQ, {"checkpoint_format": "marlin"}, ["marlin", "not built yet"]),
        (GPTQ, {"dynamic": {".*down_proj": {"bits": 8}}}, ["layers.0.mlp.down_proj", "8 bits"]),
        (GPTQ, {"dynamic": {"-:.*q_proj": {}}}, ["q_proj", "different ways"]),
        (COMPRESSED, {"format": "marlin-24"}, ["marlin-24", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(num_bits=8)}}, ["8-bit", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(type="float")}}, ["float", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(symmetric=False)}}, ["zero points", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(actorder="group")}}, ["actorder", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group(strategy="block")}}, ["block", "not built yet"]),
        (COMPRESSED, {"config_groups": {"a": group() | {"input_activations": {}}}}, ["activations"]),
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
