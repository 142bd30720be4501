"""What is packed on a GPU, with the packing kernels run on the CPU: all that checkpoints store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

import numpy as np  # noqa: E402
from cpu.checkpoint.encoded import ALL, write_model  # noqa: E402
from cpu.checkpoint.written import LLAMA  # noqa: E402
from cpu.dispatch import packers  # noqa: E402

from billhook.checkpoint import open_checkpoint  # noqa: E402
from billhook.dispatch import packing as launches  # noqa: E402
from billhook.dtypes import BF16  # noqa: E402
from billhook.errors import WeightError  # noqa: E402
from billhook.formats import host, stored  # noqa: E402
from billhook.ops import PackedWeight, from_arrays, pack_on_cuda, pack_weight, packing  # noqa: E402

DATA = Path(__file__).parents[2] / "data/checkpoints"
BY_LIBRARIES = sorted(one.name for one in DATA.iterdir() if one.is_dir())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return packers.build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def launched(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let tensors on the CPU be packed as on a GPU; holds the kernels that were launched."""
    names: list[str] = []

    def find(name: str, device: int) -> str:
        names.append(name)
        return name

    monkeypatch.setattr(launches, "launch_kernel", packers.launcher(compiled))
    monkeypatch.setattr(pack_on_cuda, "kernels", lambda: SimpleNamespace(pack=find))
    monkeypatch.setattr(pack_on_cuda, "current_stream", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return names


def pack_there(weight: host.HostWeight | host.Parts, monkeypatch: pytest.MonkeyPatch) -> PackedWeight:
    """Pack as `pack_quantized` does for a GPU."""
    arguments = packing.send(weight, torch.device("cpu"))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        return pack_weight(**arguments, dtype=torch.bfloat16)


def same(got: PackedWeight, want: PackedWeight) -> None:
    mine, theirs = got.state_dict(), want.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype and torch.equal(mine[name], tensor), name


@pytest.mark.parametrize("name", BY_LIBRARIES)
def test_checkpoints_of_the_formats_libraries(
    name: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(DATA / name)
    for module, fused in source.modules.items():
        found = source.read(module)
        same(pack_there(found.parts, monkeypatch), from_arrays(host.pack(found.value, BF16)))
        words = fused.linears[0].stored.format not in ("fp8", "mxfp8", "int-quantized")
        assert words == isinstance(found.parts.codes, stored.Words)
        assert fused.ordered == any("_ordered_" in one for one in launched)
        launched.clear()


@pytest.mark.parametrize("name", ALL)
def test_fused_modules_of_every_form(
    name: str, launched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, section, encode = ALL[name]
    write_model(tmp_path, LLAMA, section, encode)
    source = open_checkpoint(tmp_path)
    for module in list(source.modules)[:4]:
        found = source.read(module)
        same(pack_there(found.parts, monkeypatch), from_arrays(host.pack(found.value, BF16)))
    assert launched


@pytest.mark.parametrize("form", ["codes", "gptq", "compressed_tensors"])
def test_act_order_is_packed_as_on_the_host(
    form: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    k, n = 160, 80
    codes = rng.integers(0, 16, (k, n), dtype=np.uint8)
    order = rng.permutation(k)
    halves = codes.T if form == "compressed_tensors" else codes
    eights = halves.reshape(n, k // 8, 8) if form == "compressed_tensors" else halves.reshape(k // 8, 8, n)
    shifts = 4 * np.arange(8, dtype=np.uint64)
    axis = 2 if form == "compressed_tensors" else 1
    spread = shifts if axis == 2 else shifts[:, None]
    words = (eights.astype(np.uint64) << spread).sum(axis).astype(np.uint32).view(np.int32)
    arguments = {
        "codes": torch.from_numpy(codes if form == "codes" else words),
        "scales": torch.rand(5, n, dtype=torch.bfloat16),
        "group_size": 32,
        "stored": form,
        "input_order": torch.from_numpy(order),
    }
    want = pack_weight(
        **(arguments | {"codes": torch.from_numpy(codes[order]), "stored": "codes", "input_order": None})
    )
    same(pack_weight(**arguments), want)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    same(pack_weight(**arguments), want)


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize(("k", "n"), [(128, 64), (208, 80)])
def test_folded_weights_are_packed_as_on_the_host(
    experts: int, k: int, n: int, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (experts, k, n) if experts else (k, n)
    value = host.quantize(np.random.default_rng(k).standard_normal(shape), "w4a8")
    got = pack_there(value, monkeypatch)
    assert launched == ["pack_bytes_kn_4", "pack_scales_8"]
    same(got, from_arrays(host.pack(value)))


@pytest.mark.parametrize("form", ["gptq", "compressed_tensors"])
def test_words_of_folded_weights_are_packed_as_on_the_host(
    form: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**31), 2**31, (16, 96) if form == "gptq" else (96, 16)).astype(np.int32)
    held = stored.Words(words, form, 4, rng.permutation(128).astype(np.int32))
    folded = host.fold(host.Parts("u4b8", held, rng.standard_normal((1, 96)), None, None, 128))
    got = pack_there(folded, monkeypatch)
    assert launched[0].startswith("pack_") and "ordered" in launched[0]
    same(got, from_arrays(host.pack(folded)))


def test_folded_scales_that_do_not_fit_are_refused_there_too(
    launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = host.split(host.quantize(np.ones((128, 32)), "w4a8"))
    for change, words in (
        ({"scales": parts.scales | 0x7F}, "must not be NaN$"),
        ({"channel_scales": None}, "w4a8 weights need channel_scales"),
        ({"channel_scales": parts.channel_scales[:16]}, r"float32 \(32,\)"),
        ({"channel_scales": parts.channel_scales * np.float32(np.inf)}, "finite"),
    ):
        with pytest.raises(WeightError, match=words):
            pack_there(parts._replace(**change), monkeypatch)
    negative = parts._replace(scales=parts.scales | 0x80)
    same(pack_there(negative, monkeypatch), from_arrays(host.pack(negative)))


def test_orders_that_are_none_are_refused() -> None:
    arguments = {
        "codes": torch.zeros(32, 16, dtype=torch.uint8),
        "scales": torch.ones(1, 16),
        "group_size": -1,
    }
    order = torch.arange(32)
    for wrong, words in (
        (order[:-1], r"int32 or int64 \[32\]"),
        (order.float(), "float32"),
        (order.where(order != 3, 4), "each of 0 to 31 once"),
    ):
        with pytest.raises(WeightError, match=words):
            pack_weight(**arguments, input_order=wrong)
    awq = arguments | {"codes": torch.zeros(32, 2, dtype=torch.int32), "stored": "awq"}
    with pytest.raises(WeightError, match="AWQ and experts have no act-order"):
        pack_weight(**awq, input_order=order)
