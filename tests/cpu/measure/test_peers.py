"""Peers that are absent or refuse, and what can be checked of their layouts without their libraries."""

from pathlib import Path

import pytest

from billhook.errors import UnsupportedError
from billhook.measure.contestant import Contestant
from billhook.measure.inputs import Inputs, Weights, make_inputs, make_weights, reference
from billhook.measure.peers import (
    humming,
    installed_peers,
    machete,
    marlin,
    marlin_layout,
    torch_matmul,
    vllm,
)
from billhook.measure.workload import Workload, gemm_types, usual_group_size


@pytest.fixture
def _no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_every_peer_has_a_name_of_its_own() -> None:
    assert [peer.name for peer in installed_peers()] == ["torch", "marlin", "machete", "humming"]


@pytest.mark.usefixtures("_no_vllm")
@pytest.mark.parametrize("peer", [marlin.Marlin(), machete.Machete(), humming.Humming()])
def test_absent_peer_says_how_to_provide_it(peer: marlin.Marlin) -> None:
    with pytest.raises(UnsupportedError, match=r"not installed: (set BILLHOOK_PEER_VLLM|pip install)"):
        peer.version()


def test_folder_without_the_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(vllm.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(UnsupportedError, match=rf"{tmp_path} holds no _C\.abi3\.so"):
        vllm.find_folder()
    (tmp_path / "_C.abi3.so").write_bytes(b"")
    assert vllm.read_version() == ""
    (tmp_path / "VERSION").write_text("0.20.2\n")
    assert vllm.read_version() == "0.20.2"


def test_scalar_type_name_is_the_one_vllm_computes() -> None:
    numbers = {
        "u4": 1125899906843648,
        "u4b8": 1125899907892224,
        "u8": 1125899906844672,
        "u8b128": 1125899923621888,
        "e4m3fn": 2814749767172868,
        "e2m1f": 562949953487106,
    }
    assert {weight.name: number for weight, number in vllm.SCALAR_TYPES.items()} == numbers


@pytest.mark.parametrize(
    ("rows", "block"), [(0.125, 8), (7.1, 8), (7.2, 16), (14.4, 32), (43.1, 48), (43.2, 64), (900, 64)]
)
def test_moe_block_is_the_smallest_filled_by_less_than_nine_tenths(rows: float, block: int) -> None:
    assert marlin.moe_block(rows) == block


def test_scales_are_permuted_as_marlin_reads_them() -> None:
    torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
    scales = torch.arange(3 * 128).reshape(3, 128)
    grouped = [i + 8 * j for i in range(8) for j in range(8)]
    assert torch.equal(marlin_layout.permute_scales(scales, False)[1, :64], scales[1, grouped])
    single = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    whole = marlin_layout.permute_scales(scales[:1], True)
    assert torch.equal(whole[0, 32:64], scales[0, 32:][single])


@pytest.mark.parametrize(
    ("peer", "types", "words"),
    [
        (marlin.Marlin(), ("bf16", "u8"), "no kernel for u8"),
        (marlin.Marlin(), ("e4m3fn", "u4b8"), "SM89 and SM120"),
        (machete.Machete(), ("bf16", "mxfp4"), "u4, u4b8, u8, u8b128 only"),
        (machete.Machete(), ("s8", "u4b8"), "16-bit activations"),
        (torch_matmul.TorchMatmul(), ("s8", "u4b8"), "no product of s8"),
        (humming.Humming(), ("e4m3fn", "w4a8"), "scales are folded"),
    ],
)
def test_types_that_a_peer_does_not_serve_are_told(
    peer: Contestant, types: tuple[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (marlin, machete):
        monkeypatch.setattr(module, "load", lambda name: None)
    monkeypatch.setattr(humming.Humming, "version", lambda self: "")
    weights, cases = draw(*types)
    with pytest.raises(UnsupportedError, match=words) as refused:
        peer.prepare(weights, cases)
    assert "\n" not in str(refused.value)


def draw(act: str, name: str, group_size: int | None = None) -> tuple[Weights, list[Inputs]]:
    torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
    types = gemm_types(act, name)
    layer = Workload("d", 128, 256, (3,), types, group_size or usual_group_size(types))
    weights = make_weights(layer, 0, torch.device("cpu"))
    return weights, [make_inputs(layer, 3, 0, 1 << 20, torch.device("cpu"))]


def test_short_scales_and_their_factor_are_the_scales_of_nvfp4() -> None:
    weights, _ = draw("bf16", "nvfp4")
    import torch

    scales, factor = marlin_layout._shorten_scales(weights)
    # Read back: the byte holds a half's bits without its sign and its last 7; codes count 2^-126 fold.
    values = (scales.view(torch.uint8).to(torch.int16) << 7).view(torch.float16).float() * factor * 2.0**-126
    lying = marlin_layout.swap_middle(marlin_layout.permute_scales(weights.factors(), False))
    assert torch.equal(values[0], lying)


def test_zero_points_lie_as_kernels_dequantize_them() -> None:
    torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")
    zeros = torch.randint(0, 16, (2, 64), dtype=torch.uint8)
    words = marlin_layout.order_zeros(zeros, narrow=False).numpy().view("uint32")
    grouped = [i + 8 * j for i in range(8) for j in range(8)]
    for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        assert ((words[1] >> (4 * place)) & 15).tolist() == zeros[1, grouped].reshape(8, 8)[
            :, column
        ].tolist()


def test_torch_multiplies_float8_by_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

    def multiply(a, b, *, scale_a, scale_b, out_dtype, use_fast_accum):  # type: ignore[no-untyped-def]
        return (scale_a * (a.float() @ b.float()) * scale_b).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", multiply)
    for name in ("u4b8", "w4a8"):
        weights, cases = draw("e4m3fn", name)
        got = torch_matmul.TorchMatmul().prepare(weights, cases)(cases[0]).call(0).float()
        want = reference(weights, cases[0])
        assert float((got - want).norm() / want.norm()) < 0.003
    with pytest.raises(UnsupportedError, match="channel scales"):
        torch_matmul.TorchMatmul().prepare(*draw("e4m3fn", "u4b8", 128))
