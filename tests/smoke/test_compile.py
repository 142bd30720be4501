"""Compile a fixed set of kernels for three GPU generations; spills and register limits are the gate."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from billhook import arch
from billhook.build import Artifact, Cache, compile_kernel, compile_support
from billhook.config import parse_name
from billhook.families import marlin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KERNELS = tomllib.loads(Path(__file__).with_name("kernels.toml").read_text())["kernels"]


def show(artifact: Artifact) -> None:
    print(
        f"{artifact.unit.name}: {artifact.registers} registers, {artifact.shared_memory} bytes shared, "
        f"{artifact.spills} bytes spilled, {artifact.seconds:.1f} s"
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel["name"])
def test_kernel_fits_its_registers(kernel: dict[str, object], tmp_path: Path) -> None:
    config = parse_name(str(kernel["name"]))
    assert marlin.illegal(config) is None
    artifact = compile_kernel(config, Cache(tmp_path))
    show(artifact)
    assert list(artifact.entries) == [config.name]
    assert artifact.warnings == []
    assert artifact.spills == 0
    assert artifact.registers <= int(str(kernel["registers"]))
    assert artifact.shared_memory <= config.arch.limits.smem_per_cta


@pytest.mark.parametrize("target", ["8.0", "9.0a", "12.0"])
def test_routing_compiles_without_spills(target: str, tmp_path: Path) -> None:
    artifact = compile_support(arch.parse(target), Cache(tmp_path))
    show(artifact)
    assert artifact.warnings == []
    assert artifact.spills == 0
