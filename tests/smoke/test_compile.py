"""Compile a fixed set of kernels for five GPU generations; spills and register limits are the gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from billhook import arch
from billhook.build import Artifact, Cache, Unit, compile_kernel, compile_support, compile_unit
from billhook.config import GemmTypes, parse_name
from billhook.emit import SUPPORT, SourceFile
from billhook.families import illegal
from billhook.weights import FORMATS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KERNELS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("kernels.toml").read_text())["kernels"]
TARGETS = ("7.5", "8.0", "8.9", "9.0a", "12.0")
MOST_REGISTERS = 255  # of one thread

# 128 values stay alive across a barrier, in 32 registers: what 2048 threads of an SM have each.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(volatile float* data) {
  float values[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) values[i] = data[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) data[i] = values[i];
}
"""


def faults(artifact: Artifact, registers: int) -> list[str]:
    """Return what the gate holds against a kernel, in words."""
    limit = artifact.unit.arch.limits.smem_per_cta
    checks = {
        f"spills {artifact.spills} bytes": artifact.spills > 0,
        f"uses {artifact.registers} registers, {registers} are allowed": artifact.registers > registers,
        f"uses {artifact.shared_memory} bytes of shared memory, {limit} exist": artifact.shared_memory
        > limit,
        f"makes the compiler warn: {artifact.warnings}": bool(artifact.warnings),
    }
    return [fault for fault, there in checks.items() if there]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel["name"])
def test_kernel_fits_its_registers(kernel: dict[str, Any], tmp_path: Path) -> None:
    config = parse_name(kernel["name"])
    assert illegal(config) is None
    artifact = compile_kernel(config, Cache(tmp_path))
    assert list(artifact.entries) == [config.name]
    assert faults(artifact, kernel["registers"]) == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("part", SUPPORT)
def test_support_fits_its_registers(part: str, target: str, tmp_path: Path) -> None:
    assert faults(compile_support(part, arch.parse(target), Cache(tmp_path)), MOST_REGISTERS) == []


def test_the_gate_catches_what_it_is_for(tmp_path: Path) -> None:
    unit = Unit("spilling", "gemm", arch.parse("9.0a"), SourceFile("spilling.cu", SPILLING))
    artifact = compile_unit(unit, Cache(tmp_path))
    words = "; ".join(faults(artifact, artifact.registers - 1))
    assert f"spills {artifact.spills} bytes" in words
    assert f"uses {artifact.registers} registers, {artifact.registers - 1} are allowed" in words
    assert artifact.spills >= 4 * (128 - artifact.registers)


def test_the_set_holds_experts_and_large_tiles_of_every_generation() -> None:
    configs = [parse_name(kernel["name"]) for kernel in KERNELS]
    for target in map(arch.parse, TARGETS):
        mine = [config for config in configs if config.arch == target]
        assert {config.indexed for config in mine} == {False, True}
        assert any(config.tile.tile_m >= 48 for config in mine)
    assert {config.group_size for config in configs} == {
        size for one in FORMATS.values() for size in one.group_sizes
    }
    for one in FORMATS.values():
        for a in one.activations:
            wanted = GemmTypes(a, one.weight, one.scale or a, a)
            assert any(config.types == wanted for config in configs), wanted
        for a in one.narrow_activations:
            family = "machete" if one.folded else "marlin"
            assert any(
                (config.family, config.types.a, config.types.b) == (family, a, one.weight)
                and config.types.s == one.scale_type(config.types.c)
                for config in configs
            ), (a, one.name)
