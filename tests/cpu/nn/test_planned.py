"""A plan holds the kernels that a loaded model asks for, whatever its checkpoint says of activations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
pytest.importorskip("transformers", minversion="5", reason="needs transformers 5")

from cpu.checkpoint import encoded  # noqa: E402
from cpu.checkpoint.encoded import ALL, compressed, module_sizes, packed  # noqa: E402
from cpu.nn.planned import DENSE, DYNAMIC, EXPERTS, INT4, W4A8, write  # noqa: E402

import billhook  # noqa: E402
from billhook.arch import Arch  # noqa: E402
from billhook.checkpoint import pack_checkpoint  # noqa: E402
from billhook.config import Problem  # noqa: E402
from billhook.dispatch.source import BundleSource, Compiler, Source  # noqa: E402
from billhook.driver import native_arch  # noqa: E402
from billhook.errors import UnsupportedError  # noqa: E402
from billhook.models import load_model  # noqa: E402
from billhook.nn import QuantLinear, QuantMoE, place  # noqa: E402
from billhook.ops import PackedWeight  # noqa: E402
from billhook.ops.kinds import find_kind  # noqa: E402
from billhook.ops.tensors import ELEMENTS  # noqa: E402
from billhook.plan import Plan, make_plan  # noqa: E402

IN_64 = (compressed("pack-quantized", DYNAMIC, **INT4 | {"group_size": 64}), packed(group=64))
capabilities = pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
Asked = set[tuple[Any, ...]]


def mixed(config: dict[str, Any]) -> tuple[dict[str, Any], encoded.Encode]:
    """Return a checkpoint of which some inputs have 8 bits, some would if there were kernels, some have not.

    Attention is W4A8, what reads a layer's input in the MLP has 8-bit weights beside e4m3, and down has no
    inputs quantized.
    """
    weights = {"attn": INT4, "gate_proj|up_proj": INT4 | {"num_bits": 8}, "down_proj": INT4}
    groups = {
        name: {"targets": [f"re:.*({name}).*"], "weights": one, "input_activations": inputs}
        for (name, one), inputs in zip(weights.items(), (DYNAMIC, DYNAMIC, None), strict=True)
    }
    names = iter(module_sizes(config))

    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        bits = 8 if next(names).endswith(("gate_proj", "up_proj")) else 4
        return packed(bits, group=128)(rng, n, k)

    return compressed("pack-quantized") | {"config_groups": groups}, encode


def ask(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], source: Source | None = None) -> None:
    """Let loading ask for kernels of a GPU that this machine need not have; they are compiled if None."""

    def why_unserved(weight: PackedWeight, dtype: Any, output: Any, top_k: int) -> str | None:
        kind = find_kind(weight.format, dtype, weight.scales.dtype, output)
        if kind is None:
            return "there is no such kind"
        experts = weight.num_experts
        top_k = top_k if experts else 0
        problem = Problem(1, weight.n, weight.k, kind.types, weight.group_size, experts, top_k)
        try:
            (source or Compiler()).choose(problem, capability, 0)
        except UnsupportedError as error:
            return str(error)
        return None

    monkeypatch.setattr(place, "why_unserved", why_unserved)


def asked_by(model: Any, top_k: int, output: Any = torch.bfloat16) -> Asked:
    """Return the problem classes that a loaded model's layers ask kernels for."""
    found: Asked = set()

    def add(packed: Any, top_k: int) -> None:
        weight = packed.weight
        kind = find_kind(weight.format, packed.activations or output, weight.scales.dtype, output)
        key = (weight.n, weight.k, "_".join(kind.names), weight.group_size, weight.num_experts, top_k)
        found.add(key)

    for module in model.modules():
        if isinstance(module, QuantMoE):
            add(module.w13, top_k)
            add(module.w2, 1)
        elif isinstance(module, QuantLinear):
            add(module, 0)
    return found


def plan_for(folder: Path, arch: Arch, narrow: Any, act: Any = None) -> Plan:
    return make_plan([load_model(folder)], [arch], 64, act=act, narrow_activations=narrow, fused=False)


def planned_for(folder: Path, arch: Arch, narrow: Any) -> Asked:
    return {entry.key for entry in plan_for(folder, arch, narrow).dispatch}


@capabilities
@pytest.mark.filterwarnings("ignore:activations of:UserWarning")
@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=lambda one: one["model_type"])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "name",
    ["gptq", "packed", "int-quantized", "int-quantized-asymmetric", "int-quantized-static", "fp8-static",
     "fp8-channel", "fp8-block", "nvfp4", "mxfp8-modelopt", "w4a8", "mixed"],
)  # fmt: skip
def test_a_plan_holds_what_a_loaded_model_asks_for(  # noqa: PLR0917 - one for each that is varied
    name: str,
    narrow: bool,
    config: dict[str, Any],
    capability: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section, encode = {"w4a8": W4A8, "mixed": mixed(config)}.get(name) or ALL[name][1:]
    folder = write(tmp_path / "in", config, section, encode)
    ask(monkeypatch, capability)
    asked = asked_by(billhook.load(folder, "cpu", narrow_activations=narrow), 2)
    assert asked == planned_for(folder, native_arch(capability), narrow)
    eight = {key for key in asked if key[2].startswith(("e4m3fn_", "s8_"))}
    on_any, from_89_on = (
        {"int-quantized", "int-quantized-static"},
        {"fp8-static", "fp8-channel", "w4a8", "mixed"},
    )
    served = name in on_any or (name in from_89_on and capability >= (8, 9))
    assert bool(eight) == (narrow and served)
    if name == "mixed" and eight:
        assert {key[2] for key in asked} == {
            "e4m3fn_u4b8_bf16_bf16",
            "bf16_u8b128_bf16_bf16",
            "bf16_u4b8_bf16_bf16",
        }


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=lambda one: one["model_type"])
def test_folded_scales_are_planned_on_the_way_and_beforehand(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, arch = write(tmp_path / "in", config, *W4A8), native_arch((9, 0))
    pack_checkpoint(folder, tmp_path / "packed", fold=True)
    ask(monkeypatch, (9, 0))
    on_the_way = asked_by(billhook.load(folder, "cpu", narrow_activations="folded"), 2)
    beforehand = asked_by(billhook.load(tmp_path / "packed", "cpu"), 2)
    assert {key[2] for key in on_the_way} == {"e4m3fn_u4b8_e4m3fn_bf16"}
    assert on_the_way == beforehand == planned_for(folder, arch, "folded")
    assert on_the_way == planned_for(tmp_path / "packed", arch, False)
    assert on_the_way == planned_for(tmp_path / "packed", arch, "folded")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=lambda one: one["model_type"])
@pytest.mark.parametrize("narrow", [True, "folded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loading_finds_its_kernels_in_a_bundle(
    dtype: Any, narrow: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", config, *W4A8)
    plan = plan_for(folder, native_arch((9, 0)), narrow, ELEMENTS[dtype])
    bundle: Any = SimpleNamespace(plan=plan, folder=tmp_path / "bundle")
    ask(monkeypatch, (9, 0), BundleSource(bundle))
    asked = asked_by(billhook.load(folder, "cpu", dtype, narrow_activations=narrow), 2, dtype)
    assert asked == {entry.key for entry in plan.dispatch}


@pytest.mark.parametrize(
    ("form", "capability", "words"),
    [
        (W4A8, (8, 9), "does not fold scales"),
        (ALL["packed"][1:], (9, 0), "no scales to fold"),
        (IN_64, (9, 0), "groups of 64"),
    ],
    ids=["no kernel", "nothing asked", "other groups"],
)  # fmt: skip
def test_what_cannot_be_loaded_folded_cannot_be_planned_so(
    form: Any, capability: tuple[int, int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", DENSE, *form)
    ask(monkeypatch, capability)
    with pytest.raises(UnsupportedError, match=words):
        billhook.load(folder, "cpu", narrow_activations="folded")
    with pytest.raises(UnsupportedError, match=words):
        planned_for(folder, native_arch(capability), "folded")


def test_a_folder_packed_without_folding_can_be_neither(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", DENSE, *W4A8)
    pack_checkpoint(folder, tmp_path / "packed")
    for refused in (
        lambda: billhook.load(tmp_path / "packed", "cpu", narrow_activations="folded"),
        lambda: planned_for(tmp_path / "packed", native_arch((9, 0)), "folded"),
    ):
        with pytest.raises(UnsupportedError, match="packed without --fold; pack the checkpoint again"):
            refused()


def one_weight_of_two() -> tuple[dict[str, Any], encoded.Encode]:
    """Return a checkpoint in which the inputs of w13 are quantized, and those of w2 are not."""
    section, encode = W4A8
    (group,) = section["config_groups"].values()
    groups = {
        "w13": group | {"targets": ["re:.*(attn|gate_proj|up_proj).*"]},
        "w2": {"targets": ["re:.*down_proj.*"], "weights": group["weights"]},
    }
    return section | {"config_groups": groups}, encode


def test_experts_quantize_both_inputs_or_neither(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", EXPERTS, *one_weight_of_two())
    with pytest.warns(UserWarning, match="of 2 GEMMs stay in 16 bits: w13 and w2 .* of one type"):
        model = billhook.load(folder, "cpu", narrow_activations=True)
    asked = asked_by(model, 2)
    assert asked == planned_for(folder, native_arch((9, 0)), True)
    assert {key[2] for key in asked if key[4]} == {"bf16_u4b8_bf16_bf16"}
    assert {key[2] for key in asked if not key[4]} == {"e4m3fn_u4b8_bf16_bf16"}


def test_experts_of_which_one_weight_can_be_folded_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", EXPERTS, *one_weight_of_two())
    for refused in (
        lambda: billhook.load(folder, "cpu", narrow_activations="folded"),
        lambda: planned_for(folder, native_arch((9, 0)), "folded"),
    ):
        with pytest.raises(UnsupportedError, match="got w13 and w2 as w4a8 and u4b8"):
            refused()
