from __future__ import annotations

import pytest

from billhook.build.resources import Resources, read_resources, read_warnings
from billhook.errors import ToolchainError

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     400 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 23 registers, used 1 barriers, 400 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 630.588 ms
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for helper
ptxas         .     8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_each_entry_function_has_its_own_numbers() -> None:
    assert read_resources(LOG) == {
        "first": Resources(registers=23, static_shared=1024, stack=400, spill_stores=16, spill_loads=24),
        "second": Resources(registers=255, static_shared=0, stack=0, spill_stores=0, spill_loads=0),
    }


def test_spills_are_the_larger_direction() -> None:
    assert read_resources(LOG)["first"].spills == 24


def test_a_log_without_numbers_is_refused() -> None:
    with pytest.raises(ToolchainError, match="no registers"):
        read_resources("all is well\n")


def test_warnings_are_found_also_where_ptxas_calls_them_info() -> None:
    serialised = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due "
        "to insufficient register resources for the wgmma pipeline in the function 'k'"
    )
    frontend = 'k.cu(3): warning #177-D: variable "x" was declared but never referenced'
    assert read_warnings(f"{LOG}{serialised}\n{frontend}\n  {serialised}\n") == [serialised, frontend]
    assert read_warnings(LOG) == []
