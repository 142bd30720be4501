"""Checkpoints read as GEMMs: every stored format, what is fused, what stays apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cpu.checkpoint import encoded
from cpu.checkpoint.encoded import ALL, Array, gptq, gptq_config, nvfp4, packed, plain, write_model
from cpu.checkpoint.written import LLAMA, MOE

from billhook.checkpoint import Source, open_checkpoint
from billhook.errors import UnsupportedError, WeightError
from billhook.formats import host
from billhook.models import gemms, load_model

ONE = LLAMA | {"num_hidden_layers": 1}
ONE_MOE = MOE | {"num_hidden_layers": 1}
LAYER = "model.layers.0"


def check(source: Source, expected: dict[str, Array]) -> None:
    """Compare every GEMM with the modules that it is made of."""
    for name, fused in source.modules.items():
        weight = source.read(name)
        found = host.dequantize(weight.value, np.float64)
        assert found.shape == ((fused.num_experts,) if fused.num_experts else ()) + (fused.k, fused.n)
        for expert in range(max(1, fused.num_experts)):
            parts = [expected[part.name.replace("*", str(expert))] for part in fused.parts]
            wanted = np.concatenate(parts).T
            if weight.input_order is not None:
                wanted = wanted[weight.input_order]
            one = found[expert] if fused.num_experts else found
            assert (one == wanted).all(), (name, expert)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, ONE) for name in ALL),
        *(
            (name, ONE_MOE)
            for name in ("gptq", "awq", "packed-8bit-asymmetric", "fp8-tensor", "mxfp4", "nvfp4")
        ),
    ],
)
def test_reads_every_format(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    form, section, encode = ALL[name]
    written = write_model(tmp_path, config, section, encode, shards=2)
    source = open_checkpoint(tmp_path)
    assert {one.format for one in source.modules.values()} == {form}
    # Exact in float64, but for the reciprocal of a global scale, a power of two here.
    check(source, written.expected)
    model = load_model(tmp_path)
    assert {
        one.name.rpartition(".")[2]: (one.n, one.k, one.num_experts) for one in source.modules.values()
    } == {
        {"qkv": "qkv_proj", "gate_up": "gate_up_proj", "o": "o_proj", "down": "down_proj"}.get(
            gemm.name, gemm.name
        ): (gemm.n, gemm.k, gemm.num_experts)
        for gemm in gemms(model, 0, 1)
    }
    assert set(source.plain) == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        f"{LAYER}.input_layernorm.weight",
    }


def test_reads_bytes_of_unquantized_tensors(tmp_path: Path) -> None:
    written = write_model(tmp_path, ONE, gptq_config(), gptq(), shards=3)
    source = open_checkpoint(tmp_path)
    for name in source.plain:
        assert source.array(name).tobytes() == written.tensors[name].tobytes()


def shuffled(k: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).permutation(k)


def by_k(make: Any, seeds: dict[int, int] | None = None) -> encoded.Encode:
    """Return an encoder in act-order, in the same order for all modules of one k."""

    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        return make(order=shuffled(k, (seeds or {}).get(n, 0)))(rng, n, k)

    return encode


@pytest.mark.parametrize(
    ("section", "make"),
    [
        (gptq_config(desc_act=True), gptq),
        (encoded.compressed("pack-quantized", num_bits=4, actorder="group", **encoded.INTS), packed),
    ],
)
def test_act_order_is_read_as_an_order_of_input_features(
    tmp_path: Path, section: dict[str, Any], make: Any
) -> None:
    written = write_model(tmp_path, ONE, section, by_k(make))
    source = open_checkpoint(tmp_path)
    assert {name.rpartition(".")[2] for name in source.modules} == {
        "qkv_proj",
        "o_proj",
        "gate_up_proj",
        "down_proj",
    }
    assert all(one.ordered for one in source.modules.values())
    check(source, written.expected)


def test_projections_in_different_orders_stay_apart(tmp_path: Path) -> None:
    # q has 256 output features, k and v have 128
    written = write_model(tmp_path, ONE, gptq_config(desc_act=True), by_k(gptq, {128: 1}))
    source = open_checkpoint(tmp_path)
    assert {f"{LAYER}.self_attn.{name}_proj" for name in "qkvo"} < set(source.modules)
    assert f"{LAYER}.mlp.gate_up_proj" in source.modules
    assert any("qkv_proj stays apart" in note and "different orders" in note for note in source.notes)
    check(source, written.expected)


def test_act_order_that_is_none_needs_no_order(tmp_path: Path) -> None:
    write_model(tmp_path, ONE, gptq_config(desc_act=True), gptq())
    source = open_checkpoint(tmp_path)
    assert not any(one.ordered for one in source.modules.values())
    assert source.read(f"{LAYER}.self_attn.o_proj").input_order is None


def test_experts_in_different_orders_are_refused(tmp_path: Path) -> None:
    count = iter(range(1000))

    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        return gptq(order=shuffled(k, next(count)))(rng, n, k)

    write_model(tmp_path, ONE_MOE, gptq_config(desc_act=True), encode)
    with pytest.raises(UnsupportedError, match=r"experts.*different orders"):
        open_checkpoint(tmp_path)


def test_projections_with_different_global_scales_stay_apart(tmp_path: Path) -> None:
    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        return nvfp4(whole=64.0 if n == 256 else 32.0)(rng, n, k)

    _, section, _ = ALL["nvfp4"]
    written = write_model(tmp_path, ONE, section, encode)
    source = open_checkpoint(tmp_path)
    assert f"{LAYER}.self_attn.q_proj" in source.modules
    assert any("different global scales" in note for note in source.notes)
    check(source, written.expected)


def test_experts_may_have_global_scales_of_their_own(tmp_path: Path) -> None:
    count = iter(range(1000))

    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        number = next(count) - 4  # after q, k, v and o: gate, up and down of each expert
        whole = 2.0 ** (number // 3 if number >= 0 else 0)
        return nvfp4(whole=whole)(rng, n, k)

    written = write_model(tmp_path, ONE_MOE, ALL["nvfp4"][1], encode)
    source = open_checkpoint(tmp_path)
    check(source, written.expected)
    assert len(set(host.split(source.read(f"{LAYER}.mlp.experts.w13").value).global_scales.tolist())) == 4


def test_an_expert_whose_projections_have_different_global_scales_is_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> None:
        tensors[f"{LAYER}.mlp.experts.2.up_proj.weight_global_scale"][0] = 3

    write_model(tmp_path, ONE_MOE, *ALL["nvfp4"][1:], change=change)
    both = r"experts\.2\.gate_proj and .*up_proj have different global scales, 0\.015625 and 0\.3333.*again"
    with pytest.raises(UnsupportedError, match=both):
        open_checkpoint(tmp_path)


def test_some_projections_may_be_left_unquantized(tmp_path: Path) -> None:
    names = [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]

    def change(tensors: dict[str, Array]) -> None:
        for name in names:
            n = 256 if "q_" in name else 128
            for part in list(tensors):
                if part.startswith(name):
                    del tensors[part]
            tensors[f"{name}.weight"] = plain(np.random.default_rng(0), n, 256).tensors["weight"]

    section = ALL["packed"][1] | {"ignore": ["lm_head", *names]}
    write_model(tmp_path, ONE, section, packed(), change=change)
    source = open_checkpoint(tmp_path)
    assert {name.rpartition(".")[2] for name in source.modules} == {"o_proj", "gate_up_proj", "down_proj"}
    assert {f"{name}.weight" for name in names} < set(source.plain)


def test_biases_are_joined(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> None:
        for name, n in (("q", 256), ("k", 128), ("v", 128), ("o", 256)):
            values = np.random.default_rng(n).standard_normal(n).astype(np.float16)
            tensors[f"{LAYER}.self_attn.{name}_proj.bias"] = values

    written = write_model(tmp_path, ONE | {"attention_bias": True}, gptq_config(), gptq(), change=change)
    source = open_checkpoint(tmp_path)
    bias = source.read(f"{LAYER}.self_attn.qkv_proj").bias
    assert bias is not None
    wanted = [written.tensors[f"{LAYER}.self_attn.{name}_proj.bias"] for name in "qkv"]
    assert (bias == np.concatenate(wanted)).all()
    assert not any(name.endswith("bias") for name in source.plain)


@pytest.mark.parametrize("experts", [False, True])
def test_scales_and_biases_of_several_types_are_joined(tmp_path: Path, experts: bool) -> None:
    """In float32, which holds those of f16 and those of bf16."""
    place = f"{LAYER}.mlp.experts.1" if experts else f"{LAYER}.mlp"

    def change(tensors: dict[str, Array]) -> None:
        for name in ("gate", "up"):
            bias = np.full(tensors[f"{place}.{name}_proj.scales"].shape[-1], 0.1, np.float16)
            every = [one for one in tensors if one.endswith(f"{name}_proj.scales")]
            for one in every:
                tensors[one.replace("scales", "bias")] = bias
        scales = tensors[f"{place}.up_proj.scales"]
        tensors[f"{place}.up_proj.scales"] = np.full(scales.shape, 2.0**-20, ml_dtypes.bfloat16)
        tensors[f"{place}.up_proj.bias"] = np.full(len(scales.T), 3e38, ml_dtypes.bfloat16)

    written = write_model(tmp_path, ONE_MOE if experts else ONE, gptq_config(), gptq(), change=change)
    source = open_checkpoint(tmp_path)
    found = source.read(f"{LAYER}.mlp.experts.w13" if experts else f"{LAYER}.mlp.gate_up_proj")
    assert found.bias is not None
    gate, up = np.split((found.bias[1] if experts else found.bias).astype(np.float64), 2)
    assert (gate == np.float16(0.1)).all() and (up == float(ml_dtypes.bfloat16(3e38))).all()
    parts = host.split(found.value)
    scales = (parts.scales[1] if experts else parts.scales).astype(np.float64)
    given = written.tensors[f"{place}.gate_proj.scales"].astype(np.float64)
    assert (scales == np.concatenate([given, np.full(given.shape, 2.0**-20)], axis=-1)).all()


@pytest.mark.parametrize("sizes", [(320, 336), (128, 96)], ids=["cut blocks", "within one block"])
def test_blocks_that_the_sizes_do_not_fill(tmp_path: Path, sizes: tuple[int, int]) -> None:
    hidden, inner = sizes
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": 1, "head_dim": 64}
    config = ONE | heads | {"hidden_size": hidden, "intermediate_size": inner}
    written = write_model(tmp_path, config, *ALL["fp8-block"][1:])
    check(open_checkpoint(tmp_path), written.expected)


def test_scales_of_activations_are_left_out_and_those_of_the_cache_kept(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> None:
        tensors[f"{LAYER}.self_attn.k_proj.k_scale"] = np.ones(1, np.float32)
        tensors[f"{LAYER}.self_attn.k_proj.input_scale"] = np.ones(1, np.float32)

    write_model(tmp_path, ONE, *ALL["fp8-tensor"][1:], change=change)
    source = open_checkpoint(tmp_path)
    assert f"{LAYER}.self_attn.k_proj.k_scale" in source.plain
    assert f"{LAYER}.self_attn.k_proj.input_scale" not in source.plain
    assert any("1 scales of quantized activations" in note for note in source.notes)


@pytest.mark.parametrize("config", [ONE, ONE_MOE])
@pytest.mark.parametrize("name", ["fp8-static", "int-quantized-static"])
def test_static_scales_of_activations_come_with_the_weights(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    written = write_model(tmp_path, config, *ALL[name][1:])
    source = open_checkpoint(tmp_path)
    for module, fused in source.modules.items():
        assert fused.static
        assert str(fused.stored.activations) == ("e4m3fn" if name == "fp8-static" else "s8")
        experts = [str(number) for number in range(fused.num_experts)] or [""]
        wanted = [
            [written.tensors[f"{part.name.replace('*', expert)}.input_scale"] for part in fused.parts]
            for expert in experts
        ]
        found = source.read(module).input_scales
        assert found is not None
        assert found.tolist() == np.array(wanted if fused.num_experts else wanted[0]).tolist()
    assert not source.notes


@pytest.mark.parametrize(
    ("inputs", "wanted"),
    [
        ({"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}, "s8"),
        ({"num_bits": 8, "type": "float", "dynamic": False, "strategy": "tensor"}, "e4m3fn"),
        ({"num_bits": 8, "type": "float", "dynamic": True, "strategy": "group", "group_size": 128}, "None"),
        ({"num_bits": 8, "type": "int", "dynamic": False, "symmetric": False}, "None"),
        ({"num_bits": 4, "type": "float", "dynamic": "local", "strategy": "tensor_group"}, "None"),
    ],
)
def test_activations_are_those_that_the_config_asks_for(
    tmp_path: Path, inputs: dict[str, Any], wanted: str
) -> None:
    section = encoded.compressed("pack-quantized", inputs, num_bits=4, **encoded.INTS)
    write_model(tmp_path, ONE, section, packed())
    source = open_checkpoint(tmp_path)
    assert {str(one.stored.activations) for one in source.modules.values()} == {wanted}
    assert not any(one.static for one in source.modules.values())


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_expert_is_named(tmp_path: Path, number: int) -> None:
    def change(tensors: dict[str, Array]) -> None:
        for part in list(tensors):
            if part.startswith(f"{LAYER}.mlp.experts.{number}.up_proj."):
                del tensors[part]

    # of an unknown architecture, whose sizes nothing else tells
    config = ONE_MOE | {"architectures": ["Unknown"]}
    write_model(tmp_path, config, gptq_config(), gptq(), change=change)
    with pytest.raises(WeightError, match=rf"experts\.{number}\.up_proj is missing"):
        open_checkpoint(tmp_path)


def test_a_dense_layer_may_be_called_as_one_of_experts(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> None:
        for part in [name for name in tensors if ".down_proj." in name]:
            tensors[part.replace("mlp.down_proj", "feed_forward.w2")] = tensors.pop(part)

    write_model(tmp_path, ONE | {"architectures": ["Unknown"]}, gptq_config(), gptq(), change=change)
    fused = open_checkpoint(tmp_path).modules[f"{LAYER}.feed_forward.w2"]
    assert (fused.n, fused.k, fused.num_experts) == (256, 512, 0)


def test_a_checkpoint_without_quantized_layers_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, ONE, {}, plain)
    with pytest.raises(UnsupportedError, match="no layer is quantized"):
        open_checkpoint(tmp_path)


def test_shapes_that_kernels_do_not_read_are_refused_before_any_data(tmp_path: Path) -> None:
    config = ONE | {"intermediate_size": 520}
    write_model(tmp_path, config, gptq_config(group_size=-1), gptq(group=-1))
    with pytest.raises(UnsupportedError, match=r"mlp\.(gate_up|down)_proj: n and k must be multiples of 16"):
        open_checkpoint(tmp_path)
