"""Packed folders: they mean what the checkpoint means, and nothing looks whole that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cpu.checkpoint import encoded
from cpu.checkpoint.encoded import ALL, Array, Written, gptq, gptq_config, write_model
from cpu.checkpoint.written import LLAMA, MOE
from safetensors import safe_open

from billhook.checkpoint import open_checkpoint, open_packed, pack_checkpoint
from billhook.dtypes import BF16, F16
from billhook.errors import BillhookError, ConfigError, StorageError, UnsupportedError, WeightError
from billhook.formats import host
from billhook.models import layers, load_model

SMALL = LLAMA | {"num_hidden_layers": 2}
ONE = LLAMA | {"num_hidden_layers": 1}
SMALL_MOE = MOE | {"num_hidden_layers": 1}
MANIFEST = "billhook-pack.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Written:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return write_model(folder, SMALL, gptq_config(), gptq(), shards=3)


@pytest.mark.parametrize(
    ("name", "config"),
    [*((name, ONE) for name in ALL), *((name, SMALL_MOE) for name in ("gptq", "awq", "fp8-block", "nvfp4"))],
)
def test_packs_every_format(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    form, section, encode = ALL[name]
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_model(folder, config, section, encode)
    done = pack_checkpoint(folder, out, jobs=2)
    source, packed = open_checkpoint(folder), open_packed(out)
    assert list(packed.modules) == list(source.modules)
    assert done.modules == len(packed.modules)
    for module, fused in packed.modules.items():
        assert fused == source.modules[module]
        found, wanted = packed.read(module), host.pack(source.read(module).value, BF16)
        assert fused.format == found.weight.format == form
        for part, array in wanted.tensors().items():
            assert found.weight.tensors()[part].tobytes() == array.tobytes(), (module, part)
    assert set(packed.plain) == set(source.plain)
    for tensor in packed.plain:
        assert packed.array(tensor).tobytes() == source.array(tensor).tobytes()


def test_the_planner_reads_a_packed_folder_as_the_checkpoint(tmp_path: Path) -> None:
    for name, config in (("dense", SMALL), ("moe", SMALL_MOE)):
        folder, out = tmp_path / name, tmp_path / f"{name}-out"
        folder.mkdir()
        write_model(folder, config, gptq_config(), gptq())
        pack_checkpoint(folder, out)
        wanted, found = layers(load_model(folder)), layers(load_model(out))
        assert [(one.name, one.n, one.k, one.types, one.count) for one in found] == [
            (one.name, one.n, one.k, one.types, one.count) for one in wanted
        ]


@pytest.mark.parametrize("said", ["dtype", "torch_dtype", ""])
def test_the_planner_reads_what_a_folder_was_packed_for(tmp_path: Path, said: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    config = {key: value for key, value in SMALL.items() if key != "torch_dtype"}
    write_model(folder, config | ({said: "bfloat16"} if said else {}), gptq_config(), gptq())
    pack_checkpoint(folder, tmp_path / "out", F16)
    assert {one.types for one in layers(load_model(tmp_path / "out"))} == {"f16_u4b8_f16_f16"}


def test_keeps_biases_and_orders(tmp_path: Path) -> None:
    def encode(rng: encoded.Rng, n: int, k: int) -> encoded.Encoded:
        one = gptq(order=np.random.default_rng(k).permutation(k))(rng, n, k)
        one.tensors["bias"] = rng.standard_normal(n).astype(np.float16)
        return one

    (tmp_path / "in").mkdir()
    config = SMALL | {"attention_bias": True, "mlp_bias": True}
    write_model(tmp_path / "in", config, gptq_config(desc_act=True), encode)
    pack_checkpoint(tmp_path / "in", tmp_path / "out", F16)
    source, packed = open_checkpoint(tmp_path / "in"), open_packed(tmp_path / "out")
    assert packed.activations == F16
    for module in packed.modules:
        found, wanted = packed.read(module), source.read(module)
        assert (found.bias == wanted.bias).all()
        assert (found.input_order == wanted.input_order).all()
        assert found.weight.scales.dtype == np.float16


def test_gpt_oss(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "data/checkpoints/gpt-oss"
    pack_checkpoint(folder, tmp_path / "out")
    source, packed = open_checkpoint(folder), open_packed(tmp_path / "out")
    for module in packed.modules:
        found, wanted = packed.read(module), source.read(module)
        values = host.dequantize(host.unpack(found.weight), np.float64)
        assert (values == host.dequantize(wanted.value, np.float64)).all()
        assert found.bias is not None
        assert (found.bias == wanted.bias).all()


def test_the_folder_is_a_checkpoint_of_the_same_files(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (checkpoint.folder / "quantize_config.json").write_text("{}")
    (checkpoint.folder / "pytorch_model.bin").write_bytes(b"other weights")
    pack_checkpoint(checkpoint.folder, out)
    names = {file.name for file in out.iterdir()}
    shards = {file.name for file in checkpoint.folder.glob("*.safetensors")}
    assert names == {*shards, "config.json", "tokenizer.json", "model.safetensors.index.json", MANIFEST}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    size = 0
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, "np") as tensors:  # the format's own library
            held |= dict.fromkeys(tensors.keys(), file.name)
        header = int.from_bytes(file.read_bytes()[:8], "little")
        assert header % 64 == 56  # so that data is aligned
        size += file.stat().st_size - 8 - header
    assert index == {"metadata": {"total_size": size}, "weight_map": index["weight_map"]}
    assert index["weight_map"] == held
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["source"] == gptq_config()
    assert config["hidden_size"] == SMALL["hidden_size"]


def test_mapped_weights_are_aligned(checkpoint: Written, tmp_path: Path) -> None:
    pack_checkpoint(checkpoint.folder, tmp_path / "out")
    packed = open_packed(tmp_path / "out")
    for module in packed.modules:
        weight = packed.read(module).weight
        for array in (weight.codes, weight.scales):
            assert array.__array_interface__["data"][0] % 64 == 0
            assert not array.flags.owndata


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_second_run_writes_nothing(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = pack_checkpoint(checkpoint.folder, out)
    times = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    second = pack_checkpoint(checkpoint.folder, out)
    assert (first.written, first.kept, second.written, second.kept) == (3, 0, 0, 3)
    assert {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")} == times


@pytest.mark.parametrize("failing", [0, 3, 7])
def test_a_stopped_run_is_resumed(
    checkpoint: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    pack_checkpoint(checkpoint.folder, tmp_path / "whole")
    out = tmp_path / "out"
    count = 0

    def pack(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == failing + 1:
            raise KeyboardInterrupt
        return host.pack(*arguments)

    with pytest.raises(KeyboardInterrupt):
        pack_checkpoint(checkpoint.folder, out, pack=pack)
    assert not (out / "config.json").exists()
    assert not [file for file in out.iterdir() if file.name.startswith(".")]
    with pytest.raises(ConfigError, match="not packed to the end"):
        open_packed(out)
    done = json.loads((out / MANIFEST).read_text())["done"]
    assert {file.name for file in out.glob("*.safetensors")} == set(done)
    resumed = pack_checkpoint(checkpoint.folder, out)
    assert resumed.kept == len(done)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_killed_run_is_resumed(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = """
import os, signal, sys
from pathlib import Path
from billhook.checkpoint import pack_checkpoint
from billhook.formats import host

left = 8  # GEMMs: the last one

def pack(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return host.pack(*arguments)

pack_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), pack=pack)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(checkpoint.folder), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [file for file in out.iterdir() if file.name.startswith(".")]  # what it was writing
    assert not (out / "config.json").exists()
    whole = pack_checkpoint(checkpoint.folder, tmp_path / "whole")
    done = pack_checkpoint(checkpoint.folder, out)
    assert done.kept >= 1
    assert done.kept + done.written == whole.written
    assert contents(out) == contents(tmp_path / "whole")  # nothing is left of what was killed


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_written_again(checkpoint: Written, tmp_path: Path, damage: Any) -> None:
    out = tmp_path / "out"
    pack_checkpoint(checkpoint.folder, out)
    before = contents(out)
    file = out / "model-00002-of-00003.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert pack_checkpoint(checkpoint.folder, out).written == 1
    assert contents(out) == before


def test_refuses_to_mix_packs(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_checkpoint(checkpoint.folder, out)
    with pytest.raises(ConfigError, match="packed for bf16 activations, not f16"):
        pack_checkpoint(checkpoint.folder, out, F16)
    other = tmp_path / "other"
    other.mkdir()
    tensors = dict(checkpoint.tensors)
    name = "model.layers.1.mlp.up_proj.qweight"
    tensors[name] = tensors[name] ^ 0x11111111  # a finetune: other codes alone
    (other / "config.json").write_text((checkpoint.folder / "config.json").read_text())
    encoded.save(other, tensors, 3)
    with pytest.raises(ConfigError, match="packed from another checkpoint"):
        pack_checkpoint(other, out)


def test_refuses_folders_that_are_not_ours(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        pack_checkpoint(checkpoint.folder, out)
    with pytest.raises(ConfigError, match="the checkpoint itself"):
        pack_checkpoint(checkpoint.folder, checkpoint.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        pack_checkpoint(checkpoint.folder, tmp_path / "file")
    (out / "thesis.tex").unlink()
    (out / MANIFEST).write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        pack_checkpoint(checkpoint.folder, out)


def test_a_full_disk_leaves_no_file(
    checkpoint: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StorageError, match="No space left"):
        pack_checkpoint(checkpoint.folder, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {MANIFEST}


def test_types_of_activations(tmp_path: Path) -> None:
    _, section, encode = ALL["mxfp4"]
    config = {key: value for key, value in SMALL.items() if key != "torch_dtype"}
    write_model(tmp_path, config, section, encode)
    with pytest.raises(ConfigError, match="--act bf16"):
        pack_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"mxfp4 weights are multiplied by bf16 .* --act bf16"):
        pack_checkpoint(tmp_path, tmp_path / "out", F16)
    assert not (tmp_path / "out").exists()


def test_scales_beyond_the_activations_type_are_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, Array]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight_scale"][3, 1] = 2.0**20

    form = encoded.packed(dtype=ml_dtypes.bfloat16)
    (tmp_path / "in").mkdir()
    write_model(tmp_path / "in", SMALL, ALL["packed"][1], form, change=change)
    with pytest.raises(WeightError, match=r"model\.safetensors: model\.layers\.0\.mlp\.down_proj: scales"):
        pack_checkpoint(tmp_path / "in", tmp_path / "out", F16)
    pack_checkpoint(tmp_path / "in", tmp_path / "out-bf16", BF16)


def drop(config: dict[str, Any], name: str) -> None:
    del config["quantization_config"]["modules"][name]["parts"]


Q = "model.layers.0.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["quantization_config"].update(version=2), ["version", "2"]),
        (lambda config: config["quantization_config"].update(activations="f8"), ["activations", "f8"]),
        (lambda config: config["quantization_config"].update(quant_method="gptq", bits=4), ["billhook pack"]),
        (lambda config: drop(config, Q), [f"modules.{Q}.parts"]),
        (lambda config: config["quantization_config"]["modules"][Q].update(k=512), [f"{Q}.codes", "[8, 4,"]),
        (lambda config: config["quantization_config"]["modules"][Q].update(ordered=True), ["input_order"]),
        (
            lambda config: config["quantization_config"]["modules"][Q].update(weight="u4"),
            [f"{Q}.zeros", "missing"],
        ),
    ],
)
def test_open_refuses_what_does_not_fit(
    checkpoint: Written, tmp_path: Path, change: Any, words: list[str]
) -> None:
    out = tmp_path / "out"
    pack_checkpoint(checkpoint.folder, out)
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(BillhookError) as caught:
        open_packed(out)
    for word in words:
        assert word in str(caught.value)


def test_meta_must_be_what_the_config_says(checkpoint: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_checkpoint(checkpoint.folder, out)
    packed = open_packed(out)
    tensor = packed.tensors[f"{Q}.meta"]
    data = bytearray(tensor.file.read_bytes())
    data[tensor.begin] = 7
    tensor.file.write_bytes(data)
    with pytest.raises(WeightError, match=r"qkv_proj\.meta must be \[1, 512, 256, 64, 0\].*\[7, 512"):
        packed.read(Q)


def test_jobs_do_not_change_the_result(checkpoint: Written, tmp_path: Path) -> None:
    pack_checkpoint(checkpoint.folder, tmp_path / "one", jobs=1)
    seen: list[int] = []
    totals: list[int] = []

    def progress(total: int) -> Any:
        totals.append(total)
        return seen.append

    pack_checkpoint(checkpoint.folder, tmp_path / "four", jobs=4, progress=progress)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")
    assert sum(seen) == totals[0] == sum(array.nbytes for array in checkpoint.tensors.values())


def test_a_packed_folder_is_not_packed_again(checkpoint: Written, tmp_path: Path) -> None:
    pack_checkpoint(checkpoint.folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="out is packed already"):
        pack_checkpoint(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()
