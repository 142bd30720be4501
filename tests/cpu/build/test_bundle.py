from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from cpu.build.stand_in import artifacts, small_plan
from hypothesis import given
from hypothesis import strategies as st

from billhook.build import Bundle, Input, check_target, write_bundle
from billhook.build import folder as folders
from billhook.build.bundle import MANIFEST, MANIFEST_HASH
from billhook.errors import BundleError, CompileError, StorageError

PLAN = small_plan()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(
        tmp_path / "bundle", PLAN, artifacts(PLAN), [Input("m/config.json", "f" * 64)], {"arch": "9.0a"}
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_back_as_it_was_written(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder)
    assert loaded == bundle
    assert loaded.plan == PLAN
    assert [kernel.name for kernel in loaded.manifest.kernels] == [
        *(kernel.name for kernel in PLAN.kernels),
        "route_sm90a",
        "pack_sm90a",
    ]
    for kernel in loaded.manifest.kernels:
        assert loaded.cubin(kernel.name) == f"machine code of {kernel.name}".encode()


def test_every_file_is_in_the_manifest(bundle: Bundle) -> None:
    assert files(bundle.folder) == {MANIFEST, MANIFEST_HASH, *bundle.manifest.files}
    assert "include/billhook/kernel/stand_in.cuh" in bundle.manifest.files


def test_the_manifest_names_its_inputs_and_why(bundle: Bundle) -> None:
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    assert manifest["inputs"] == [{"name": "m/config.json", "sha256": "f" * 64}]
    assert manifest["options"] == {"arch": "9.0a"}
    assert manifest["compiler"] == "none 1.0"
    assert all(kernel["reason"] and kernel["needed_by"] for kernel in manifest["plan"]["kernels"])


def test_ptx_lies_beside_the_machine_code_where_asked_for(tmp_path: Path) -> None:
    planned = small_plan("9.0+PTX")
    bundle = write_bundle(tmp_path / "bundle", planned, artifacts(planned))
    kernel = Bundle.load(bundle.folder).manifest.kernels[0]
    assert (bundle.folder / kernel.ptx).read_text() == "// ptx\n"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle", PLAN, artifacts(PLAN))


@given(st.data())
def test_any_damage_is_found_and_the_file_named(lasting: Bundle, data: st.DataObject) -> None:
    path = lasting.folder / data.draw(st.sampled_from(sorted(files(lasting.folder) - {MANIFEST_HASH})))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged[at] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[at:]
    path.write_bytes(damaged)
    try:
        with pytest.raises(BundleError, match=re.escape(path.name)):
            Bundle.load(lasting.folder)
    finally:
        path.write_bytes(whole)


def test_a_missing_file_is_found_and_named(bundle: Bundle) -> None:
    path = next(iter(bundle.manifest.files))
    (bundle.folder / path).unlink()
    with pytest.raises(BundleError, match=f"incomplete: {path} is missing"):
        Bundle.load(bundle.folder)


def test_a_missing_hash_of_the_manifest_is_named(bundle: Bundle) -> None:
    (bundle.folder / MANIFEST_HASH).unlink()
    with pytest.raises(BundleError, match=f"incomplete: {MANIFEST_HASH} is missing"):
        Bundle.load(bundle.folder)


def test_damage_after_loading_is_found(bundle: Bundle) -> None:
    loaded = Bundle.load(bundle.folder)
    kernel = loaded.manifest.kernels[0]
    (bundle.folder / kernel.cubin).write_bytes(b"other")
    with pytest.raises(BundleError, match="damaged"):
        loaded.cubin(kernel.name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, r"format 99.*build it again"),
        ({"format": "1"}, r"not the manifest"),
        ({"kernels": []}, r"not in the bundle|damaged"),
        ({"files": {"../../etc/passwd": "0"}}, r"damaged"),
    ],
    ids=["newer", "no number", "no kernels", "outside"],
)
def test_a_manifest_of_someone_else_is_refused(bundle: Bundle, change: dict[str, object], words: str) -> None:
    path = bundle.folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=words):
        Bundle.load(bundle.folder)


def rewrite(bundle: Bundle, **change: object) -> None:
    """Change the manifest and its hash, as someone who knows the format would."""
    path = bundle.folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    (bundle.folder / MANIFEST_HASH).write_text(hashlib.sha256(path.read_bytes()).hexdigest())


def test_dispatch_to_a_kernel_that_is_not_there_is_refused(bundle: Bundle) -> None:
    rewrite(bundle, kernels=[])
    with pytest.raises(BundleError, match=r"dispatch names marlin_.*not in the bundle"):
        Bundle.load(bundle.folder)


def test_paths_that_lead_outside_are_refused(bundle: Bundle) -> None:
    rewrite(bundle, files={"../secret": "0" * 64})
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.load(bundle.folder)


def test_an_unknown_kernel_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no kernel 'nothing'"):
        bundle.cubin("nothing")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.load(tmp_path)


def test_a_bundle_replaces_a_bundle(bundle: Bundle) -> None:
    planned = small_plan(max_tokens=1)
    write_bundle(bundle.folder, planned, artifacts(planned))
    assert Bundle.load(bundle.folder).plan == planned
    assert list(bundle.folder.parent.iterdir()) == [bundle.folder]


def test_a_damaged_kernel_does_not_keep_a_bundle_from_being_replaced(bundle: Bundle) -> None:
    (bundle.folder / bundle.manifest.kernels[0].cubin).write_bytes(b"damage")
    write_bundle(bundle.folder, PLAN, artifacts(PLAN))
    assert Bundle.load(bundle.folder).plan == PLAN


def test_files_of_someone_else_are_never_replaced(bundle: Bundle) -> None:
    (bundle.folder / "cubins/notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"cubins/notes\.txt.*nothing was changed"):
        write_bundle(bundle.folder, PLAN, artifacts(PLAN))
    assert (bundle.folder / "cubins/notes.txt").read_text() == "mine"


def test_a_foreign_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(BundleError, match="--out"):
            check_target(target)
    assert files(tmp_path) == {"notes.txt"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_bundle(tmp_path / "link", PLAN, artifacts(PLAN))
    assert (tmp_path / "link").is_symlink()
    assert Bundle.load(tmp_path / "real").plan == PLAN


def test_a_full_disk_leaves_the_old_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(target: Path, contents: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_swap", fill)
    with pytest.raises(StorageError, match=r"No space left.*--out"):
        write_bundle(bundle.folder, small_plan(max_tokens=1), artifacts(PLAN))
    assert Bundle.load(bundle.folder) == bundle


def test_a_header_that_changed_during_the_build_is_refused(tmp_path: Path) -> None:
    made = artifacts(PLAN)
    made[0].headers["billhook/kernel/stand_in.cuh"] = "// edited\n"
    with pytest.raises(CompileError, match=r"stand_in\.cuh was changed"):
        write_bundle(tmp_path / "bundle", PLAN, made)
    assert not (tmp_path / "bundle").exists()
