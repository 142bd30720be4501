"""bench/overhead.py runs without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch (a CPU build will do)")

PATH = Path(__file__).parents[3] / "bench/overhead.py"
SCRIPT = f"""
import runpy, sys
sys.argv = ["overhead.py", "--m", "1,300"]
main = runpy.run_path({str(PATH)!r})["main"]
main.__globals__.update(CALLS=2, ROUNDS=1)
main()
"""


def test_every_kind_of_call_is_measured() -> None:
    env = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=env)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()[1:]
    assert {line.split()[0] for line in lines} == {"m=1", "m=300"}
    assert len([line for line in lines if "billhook.gemm" in line]) == 2 * 4
    assert len([line for line in lines if "quantize_activations" in line]) == 2
    assert all(float(line.split()[-1]) > 0 for line in lines)
