"""Kernel names and types read back to what they were made from."""

from __future__ import annotations

import pytest
from cpu.strategies import any_types, kernel_configs, problems
from hypothesis import assume, given
from hypothesis import strategies as st

from billhook.config import GemmTypes, KernelConfig, Problem, parse_name, parse_types
from billhook.errors import InputError


@given(kernel_configs())
def test_name_reads_back(config: KernelConfig) -> None:
    assert parse_name(config.name) == config
    assert str(config) == config.name


@given(kernel_configs(), st.data())
def test_a_damaged_name_is_refused_or_means_another_kernel(config: KernelConfig, data: st.DataObject) -> None:
    name = config.name
    position = data.draw(st.integers(0, len(name) - 1))
    damaged = name[:position] + data.draw(st.sampled_from("_x0-")) + name[position + 1 :]
    assume(damaged != name)
    try:
        assert parse_name(damaged) != config
    except InputError as error:
        assert "kernel name" in str(error) or "GPU architecture" in str(error) or "suffix" in str(error)


@pytest.mark.parametrize(
    "name", ["", "marlin", "marlin_bf16_u4b8_bf16_bf16_g0_m16n128k256s4_dense_sm90a", "marlin_bf16_u4b8_bf16"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="kernel name"):
        parse_name(name)


@given(any_types())
def test_types_read_back(types: GemmTypes) -> None:
    assert parse_types(str(types)) == types


@pytest.mark.parametrize(
    "text", ["", "bf16", "bf16_u4b8_bf16", "bf16_u4b8_bf16_bf17", "bf16_u4b8_bf16_bf16_f16"]
)
def test_what_are_no_types_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not GEMM types"):
        parse_types(text)


@given(problems())
def test_rows_per_expert_is_the_mean(problem: Problem) -> None:
    if problem.moe:
        assert problem.rows_per_expert * problem.num_experts == pytest.approx(problem.m * problem.top_k)
    else:
        assert problem.rows_per_expert == problem.m
