"""Peers that are absent or refuse, and what can be checked of their layouts without their libraries."""

from pathlib import Path

import pytest

from billhook.errors import UnsupportedError
from billhook.measure.peers import humming, installed_peers, machete, marlin, marlin_layout, vllm


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
