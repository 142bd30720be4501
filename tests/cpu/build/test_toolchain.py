from __future__ import annotations

import sys
from pathlib import Path

import pytest

from billhook.build import toolchain
from billhook.errors import ToolchainError


@pytest.fixture(autouse=True)
def forget() -> None:
    toolchain.find_nvrtc.cache_clear()


def test_missing_bindings_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ToolchainError, match=r"cuda-bindings.*pip install 'billhook\[cuda\]'"):
        toolchain.find_nvrtc()


def test_a_missing_library_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nvrtc: object) -> str:
        raise RuntimeError("Failed to dlopen libnvrtc.so.13")

    monkeypatch.setattr(toolchain, "_probe", refuse)
    with pytest.raises(ToolchainError, match=r"libnvrtc\.so\.13.*pip install"):
        toolchain.find_nvrtc()


def test_the_library_in_use_is_named() -> None:
    found = toolchain.find_nvrtc()
    assert "libnvrtc.so" in found.path
    assert Path(found.path).is_file()


def fake_nvcc(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 99.1, V{version}'\n")
    nvcc.chmod(0o755)
    return nvcc


def test_nvcc_of_cuda_home_comes_before_that_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(tmp_path / "path", "99.1.2")
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=":")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    found = toolchain.find_nvcc()
    assert found is not None
    assert found.version == "99.1.2"
    home = fake_nvcc(tmp_path / "home/bin", "99.1.3")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert toolchain.find_nvcc() == toolchain.Compiler("99.1.3", str(home))
