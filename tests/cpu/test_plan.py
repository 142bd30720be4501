"""Plans cover every token count of every layer, share what is equal, and survive JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cpu.strategies import multiplies, problems, requests
from hypothesis import given
from hypothesis import strategies as st

from billhook.arch import Arch, parse, parse_list
from billhook.catalog import load
from billhook.config import Problem
from billhook.dtypes import F16, S8
from billhook.errors import ConfigError, InputError, UnsupportedError
from billhook.families import illegal
from billhook.models import Model, load_model
from billhook.plan import Plan, from_json, make_plan, plan_problems, to_json
from billhook.select import select, stretches

EXAMPLES = Path(__file__).parents[2] / "examples/models"
BUILT = [
    "deepseek-r1-distill-llama-8b-quantized-w4a16",
    "llama-3.1-8b-gptq-int4",
    "llama-3.3-70b-gptq-int4",
    "mixtral-8x7b-gptq",
    "qwen3-30b-a3b-gptq-int4",
]
ARCHS = parse_list("8.0,8.6,9.0a,12.0")


def models() -> list[Model]:
    return [load_model(EXAMPLES / name) for name in BUILT]


def check(plan: Plan) -> None:
    """Check what must hold for every plan."""
    kernels = {kernel.name: kernel for kernel in plan.kernels}
    assert len(kernels) == len(plan.kernels)
    for name, kernel in kernels.items():
        assert kernel.config.name == name
        assert str(kernel.config.arch) == kernel.arch
        assert illegal(kernel.config) is None
        assert kernel.reason
        assert kernel.needed_by
    used = set()
    keys = [(entry.arch, entry.key) for entry in plan.dispatch]
    assert len(set(keys)) == len(keys)
    for entry in plan.dispatch:
        assert [one.first for one in entry.ranges] == [1, *(one.last + 1 for one in entry.ranges[:-1])]
        assert all(kernels[one.kernel].arch == entry.arch for one in entry.ranges)
        used |= {one.kernel for one in entry.ranges}
    assert used == set(kernels)
    for layer in plan.layers:
        for arch in map(parse, plan.archs):
            serving = [entry for entry in plan.dispatch if entry.arch == str(arch)]
            (entry,) = [one for one in serving if one.serves(layer.problem(1), arch.capability)]
            assert entry.ranges[-1].last >= layer.problem(plan.max_tokens).m
            needs = sorted(
                (need.first, need.last, kernel.name)
                for kernel in plan.kernels
                for need in kernel.needed_by
                if need.layer == layer.id and kernel.arch == str(arch)
            )
            assert [first for first, _, _ in needs] == [1, *(last + 1 for _, last, _ in needs[:-1])]
            assert needs[-1][1] == plan.max_tokens
            for first, last, name in needs:
                for tokens in {first, last}:
                    problem = layer.problem(tokens)
                    assert entry.kernel(problem.m) == name == select(problem, arch).config.name


@pytest.mark.parametrize("max_tokens", [1, 7, 100, 8192])
def test_published_models(max_tokens: int) -> None:
    plan = make_plan(models(), ARCHS, max_tokens, tps=[1, 2])
    check(plan)
    assert [layer.model for layer in plan.layers[::8]] == BUILT


@given(requests(), st.lists(problems(), max_size=3), st.integers(1, 10000))
def test_explicit_problems(asked: tuple[Problem, Arch], more: list[Problem], max_tokens: int) -> None:
    first, arch = asked
    found = [first, *(one for one in more if multiplies(arch, one.types))]
    plan = plan_problems(found, [arch], max_tokens)
    check(plan)
    assert {layer.problem(first.m) for layer in plan.layers} == {replace(one, m=first.m) for one in found}


def test_json_reads_back() -> None:
    plan = make_plan(models(), ARCHS)
    assert from_json(to_json(plan)) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "null", b'{"format": "\xff"}'])
def test_what_is_no_plan_is_refused(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="not a plan"):
        from_json(text)


def test_a_plan_of_another_format_is_refused() -> None:
    plan = replace(make_plan(models()[:1], ARCHS), format=2)
    with pytest.raises(ConfigError, match=r"must be 1 \(got 2\)"):
        from_json(to_json(plan))


def test_equal_requests_give_equal_text_whatever_the_hash_seed() -> None:
    command = [sys.executable, "-m", "billhook", "plan", "--json", "--arch", "8.0,9.0a"]
    texts = {
        subprocess.run(
            [*command, *(str(EXAMPLES / name) for name in BUILT)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_layers_of_one_class_share_kernels_and_dispatch() -> None:
    one = load_model(EXAMPLES / "deepseek-r1-distill-llama-8b-quantized-w4a16")
    alone = make_plan([one], ARCHS)
    both = make_plan([one, replace(one, name="twin")], ARCHS)
    assert both.dispatch == alone.dispatch
    assert [kernel.name for kernel in both.kernels] == [kernel.name for kernel in alone.kernels]
    assert len(both.layers) == 2 * len(alone.layers)


def test_models_of_one_name_are_refused() -> None:
    one = load_model(EXAMPLES / "mixtral-8x7b-gptq")
    with pytest.raises(InputError, match="two models are called 'mixtral-8x7b-gptq'"):
        make_plan([one, one], ARCHS)


def test_repeated_sizes_and_targets_count_once() -> None:
    plan = make_plan(models()[:1], parse_list("9.0a,9.0a"), tps=[1, 1])
    assert plan == make_plan(models()[:1], parse_list("9.0a"))


def test_ptx_is_kept_and_merged() -> None:
    plan = make_plan(models()[:1], parse_list("8.0,9.0,8.0+PTX"))
    assert plan.archs == ("8.0+PTX", "9.0")
    assert {kernel.config.arch for kernel in plan.kernels} == {Arch(8, 0, ptx=True), Arch(9, 0)}


def test_activations_can_be_chosen() -> None:
    plan = make_plan(models(), ARCHS, act=F16)
    assert {layer.types for layer in plan.layers} == {"f16_u4b8_f16_f16"}


W4A8 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"},
        }
    },
    "ignore": ["lm_head"],
}


@pytest.fixture
def w4a8(tmp_path: Path) -> Model:
    """Return a model of 4-bit weights in groups whose config asks for e4m3 activations."""
    config = json.loads((EXAMPLES / "mixtral-8x7b-gptq/config.json").read_text())
    (tmp_path / "asks.json").write_text(json.dumps(config | {"quantization_config": W4A8}))
    return load_model(tmp_path / "asks.json")


def test_narrow_activations_are_planned_where_a_target_has_kernels(w4a8: Model) -> None:
    plan = make_plan([w4a8], parse_list("8.0,8.9,9.0a"), 64, narrow_activations=True)
    types = {"bf16": "bf16_u4b8_bf16_bf16", "e4m3fn": "e4m3fn_u4b8_bf16_bf16"}
    places = ["qkv", "o", "w13", "w2"]
    assert [layer.name for layer in plan.layers] == [f"{name}_{a}" for a in types for name in places]
    assert all(layer.types == types[layer.name.rpartition("_")[2]] for layer in plan.layers)
    asked = {(entry.arch, entry.types) for entry in plan.dispatch}
    assert asked == {("8.0", types["bf16"]), ("8.9", types["e4m3fn"]), ("9.0a", types["e4m3fn"])}
    for kernel in plan.kernels:
        assert {need.layer.rpartition("_")[2] for need in kernel.needed_by} == {str(kernel.config.types.a)}
    (note,) = plan.notes
    assert note.startswith("asks: on 8.0, inputs of 128 GEMMs of u4b8 weights stay in 16 bits: ")
    assert from_json(to_json(plan)) == plan
    alone = make_plan([w4a8], parse_list("9.0a"), 64, narrow_activations=True)
    assert [layer.name for layer in alone.layers] == places
    assert not alone.notes


def test_without_being_asked_for_activations_have_16_bits(w4a8: Model) -> None:
    plan = make_plan([w4a8], parse_list("9.0a"), 64)
    assert {layer.types for layer in plan.layers} == {"bf16_u4b8_bf16_bf16"}
    assert any("--narrow-activations" in note for note in plan.notes)
    plain = make_plan(models()[:1], parse_list("9.0a"), 64, narrow_activations=True)
    assert {layer.types.partition("_")[0] for layer in plain.layers} == {"bf16"}
    assert any("inputs of all GEMMs stay in 16 bits" in note for note in plain.notes)


def test_folded_scales_need_a_target_that_has_kernels(w4a8: Model) -> None:
    plan = make_plan([w4a8], parse_list("9.0a"), 64, act=F16, narrow_activations="folded")
    assert {layer.types for layer in plan.layers} == {"e4m3fn_u4b8_e4m3fn_f16"}
    with pytest.raises(UnsupportedError, match="does not fold scales"):
        make_plan([w4a8], parse_list("9.0a,8.9"), 64, narrow_activations="folded")
    with pytest.raises(UnsupportedError, match="no scales to fold"):
        make_plan(models()[:1], parse_list("9.0a"), narrow_activations="folded")


def test_activations_are_chosen_once(w4a8: Model) -> None:
    with pytest.raises(InputError, match="s8 inputs of every layer leave the checkpoint nothing to say"):
        make_plan([w4a8], parse_list("9.0a"), act=S8, narrow_activations=True)


def test_projections_that_are_not_fused_are_gemms_of_their_own() -> None:
    every = [load_model(EXAMPLES / name) for name in BUILT]
    fused, apart = (make_plan(every, parse_list("9.0a"), 64, tps=[1, 2], fused=one) for one in (True, False))
    check(apart)

    def sizes(plan: Plan) -> dict[tuple[str, int], dict[str, tuple[int, int]]]:
        found: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        for layer in plan.layers:
            found.setdefault((layer.model, layer.tp), {})[layer.name] = (layer.n, layer.k)
        return found

    assert list(sizes(apart)["llama-3.1-8b-gptq-int4", 1]) == ["q", "k", "v", "o", "gate", "up", "down"]
    for place, whole in sizes(fused).items():
        parts = sizes(apart)[place]
        for name, (n, k) in whole.items():
            mine = {"qkv": "qkv", "gate_up": ("gate", "up")}.get(name, (name,))
            assert sum(parts[one][0] for one in mine) == n
            assert {parts[one][1] for one in mine} == {k}


def test_a_plan_takes_only_what_its_tokens_need() -> None:
    assert len(make_plan(models()[:1], parse_list("9.0a"), max_tokens=8).kernels) == 1


def test_beyond_the_last_range_its_kernel_serves() -> None:
    (entry, *_) = make_plan(models()[:1], parse_list("9.0a"), max_tokens=20).dispatch
    assert entry.kernel(10**6) == entry.ranges[-1].kernel
    with pytest.raises(InputError, match="m must"):
        entry.kernel(0)


def test_dispatch_serves_its_class_and_its_gpus_alone() -> None:
    plan = make_plan(models()[:1], parse_list("8.0"))
    problem = plan.layers[0].problem(1)
    entry = plan.dispatch[0]
    assert entry.serves(problem, (8, 9))
    assert not entry.serves(problem, (9, 0))
    assert not entry.serves(replace(problem, n=problem.n + 64), (8, 0))
    assert not entry.serves(replace(problem, group_size=64), (8, 0))


def test_nothing_to_plan_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to plan"):
        make_plan([], ARCHS)
    with pytest.raises(InputError, match="nothing to plan"):
        make_plan(models(), [])
    with pytest.raises(InputError, match="max_tokens"):
        make_plan(models(), ARCHS, max_tokens=0)


def test_a_layer_that_no_kernel_serves_is_named(tmp_path: Path) -> None:
    text = (EXAMPLES / "llama-3.1-8b-gptq-int4/config.json").read_text()
    (tmp_path / "odd.json").write_text(text.replace("14336", "14340"))
    with pytest.raises(UnsupportedError, match=r"odd/tp1/gate_up: .*n must be .* 16 \(got 28680\)"):
        make_plan([load_model(tmp_path / "odd.json")], ARCHS)
    with pytest.raises(UnsupportedError, match=r"tp1/qkv: .*7\.5"):
        make_plan(models(), [parse("7.5")])


@pytest.mark.parametrize("within", [0.03, 0.1, 0.3])
def test_fewer_kernels_take_at_most_so_much_longer(within: float) -> None:
    asked, (arch,) = models()[1:2], parse_list("9.0a")
    every, few = make_plan(asked, [arch]), make_plan(asked, [arch], within=within)
    names = {kernel.name for kernel in few.kernels}
    assert names <= {kernel.name for kernel in every.kernels}
    assert len(names) < len(every.kernels) or within < 0.1
    for layer in few.layers:
        problem = layer.problem(few.max_tokens)
        (entry,) = [one for one in few.dispatch if one.serves(problem, arch.capability)]
        for one in stretches(problem, problem.m, arch):
            near = {config.name for config in one.near(within)}
            served = [entry.kernel(m) for m in (one.first, one.last)]
            assert set(served) <= near
            times = zip(one.winner.kernels, one.times, strict=True)
            kept = {config.name: time for config, time in times if config.name in names}
            assert kept[served[0]] == min(kept.values())
    assert any(f": within {100 * within:g}% of the fastest of" in kernel.reason for kernel in few.kernels)
    assert from_json(to_json(few)) == few
    assert make_plan(asked, [arch], within=within) == few


def test_explicit_problems_can_make_do_with_fewer_kernels_too() -> None:
    asked = [layer.problem(1) for layer in make_plan(models()[1:2], parse_list("9.0a")).layers]
    every, few = (plan_problems(asked, parse_list("9.0a"), within=within) for within in (0.0, 0.2))
    assert len(few.kernels) < len(every.kernels)
    assert plan_problems(asked, parse_list("9.0a")) == every


def test_rules_of_single_tiles_leave_nothing_to_save() -> None:
    mixtral = [load_model(EXAMPLES / "mixtral-8x7b-gptq")]
    assert make_plan(mixtral, parse_list("8.0"), within=0.5) == make_plan(mixtral, parse_list("8.0"))


def test_tiles_are_chosen_for_the_multiprocessors_of_a_gpu() -> None:
    asked = models()[1:2]
    usual = make_plan(asked, parse_list("9.0a"))
    same, fewer = (make_plan(asked, parse_list("9.0a"), catalog=load().on(count)) for count in (132, 114))
    assert same == usual
    assert fewer.dispatch != usual.dispatch
    assert (usual.multiprocessors, fewer.multiprocessors) == (132, 114)
    assert any(" as predicted for 114 multiprocessors" in kernel.reason for kernel in fewer.kernels)
    assert not any("multiprocessors" in kernel.reason for kernel in usual.kernels)
    assert from_json(to_json(fewer)) == fewer
    older = json.loads(to_json(usual))
    del older["multiprocessors"]
    assert from_json(json.dumps(older)) == usual


@pytest.mark.parametrize("count", [1, 2, 16, 78, 1024])
def test_any_number_of_multiprocessors_has_its_tiles(count: int) -> None:
    found = make_plan(models()[1:2], parse_list("9.0a"), catalog=load().on(count))
    assert found.multiprocessors == count
    assert found.dispatch != make_plan(models()[1:2], parse_list("9.0a")).dispatch


@pytest.mark.parametrize("count", [-1, 0, 1025])
def test_a_gpu_of_no_multiprocessors_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"1 to 1024 multiprocessors \(got {count}\): an H100 SXM 132"):
        load().on(count)


@pytest.mark.parametrize("within", [-0.01, 1.01, 3, float("nan"), float("inf"), "3%", None])
def test_a_share_that_is_none_is_refused(within: Any) -> None:
    with pytest.raises(InputError, match=r"within must be a number from 0 to 1, .* \(got"):
        make_plan(models(), ARCHS, within=within)
    with pytest.raises(InputError, match="within must be"):
        plan_problems([], ARCHS, within=within)
