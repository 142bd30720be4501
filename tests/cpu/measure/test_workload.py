from pathlib import Path

import pytest

from billhook.errors import ConfigError, InputError
from billhook.measure.workload import (
    DENSE_TOKENS,
    MOE_TOKENS,
    Workload,
    gemm_types,
    parse_counts,
    parse_shape,
    read_model,
    read_shapes,
)

ROOT = Path(__file__).parents[3]
TYPES = gemm_types("bf16")


def test_shipped_shapes_are_those_of_the_comparison() -> None:
    dense = read_shapes(ROOT / "bench/shapes/dense.toml", TYPES, 128)
    assert [(one.n, one.k) for one in dense] == [(4096, 4096), (28672, 4096), (8192, 8192)]
    assert all(one.tokens == DENSE_TOKENS and not one.moe for one in dense)
    moe = {one.name: one for one in read_shapes(ROOT / "bench/shapes/moe.toml", TYPES, 128)}
    assert all(one.tokens == MOE_TOKENS for one in moe.values())
    assert moe["mixtral_w13"].problem(16).m == 16
    w2 = moe["qwen3_30b_w2"].problem(16)
    assert (w2.m, w2.top_k, w2.num_experts) == (128, 1, 128)
    assert w2.rows_per_expert == moe["qwen3_30b_w13"].problem(16).rows_per_expert == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[layer]]\nname='a'\nn=64\n", "k"),
        ("[[layer]]\nname='a'\nn=64\nk='x'\n", r"layer\[0\]\.k"),
        ("[[layer]]\nname='a'\nn=64\nk=64\ntokns=[1]\n", "tokns"),
        ("layer = 3", "layer"),
        ("[[layer", "not TOML"),
    ],
)
def test_wrong_shape_file_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "shapes.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"shapes\.toml: .*{words}"):
        read_shapes(path, TYPES, 128)


def test_missing_shape_file() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_shapes(Path("/nowhere/shapes.toml"), TYPES, 128)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"tokens": ()},
        {"tokens": (0,)},
        {"group_size": 48},
        {"num_experts": 8},
        {"top_k": 2},
        {"num_experts": 2, "top_k": 3},
    ],
)
def test_senseless_layer_is_refused(change: dict) -> None:
    fields = {"name": "odd", "n": 64, "k": 64, "tokens": (1,), "types": TYPES} | change
    with pytest.raises(InputError, match="odd"):
        Workload(**fields).check()


def test_numbers_on_the_command_line() -> None:
    assert parse_shape("4096x14336") == (4096, 14336)
    assert parse_counts("1, 16 16,256") == (1, 16, 256)
    for wrong in ("4096", "x", "0x64", "64x-1"):
        with pytest.raises(InputError, match="NxK"):
            parse_shape(wrong)
    for wrong in ("", "0", "1,x", "-1"):
        with pytest.raises(InputError, match="token counts"):
            parse_counts(wrong)


def test_a_models_layers_are_measured_once_each() -> None:
    found = read_model(ROOT / "examples/models/qwen3-30b-a3b-gptq-int4", 1, (1, 64), None)
    assert {one.name for one in found} == {"qkv", "o", "w13", "w2"}
    w13, w2 = (next(one for one in found if one.name == name) for name in ("w13", "w2"))
    assert (w13.n, w13.k, w13.num_experts, w13.top_k, w13.per_slot) == (1536, 2048, 128, 8, False)
    assert (w2.n, w2.k, w2.num_experts, w2.top_k, w2.per_slot) == (2048, 768, 128, 8, True)
    assert w2.problem(64).m == 512
