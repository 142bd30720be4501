"""Compare the two forms of kernel_selector.h at the full set.

Run as PYTHONPATH=src:tests python bench/selector.py [--record FILE].
Compiles the if/else chain, the nested switches and every kernel of all targets with
g++ against a stub tree, checks that both forms answer the same everywhere, and
measures a selection with each, interleaved, over existing kernels in random order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import ARCHS, RELEASE, machine
from stubs.marlin_tree import build

from billhook.vllm import marlin
from billhook.vllm.job import Job
from billhook.vllm.release import load_release
from billhook.vllm.targets import parse_targets


def main() -> int:
    """Build, compare, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimize", default="-O2", help="flag for the compilation of the selectors")
    parser.add_argument("--record", type=Path, help="append the result to this JSONL file")
    options = parser.parse_args()
    job = Job("marlin-moe", load_release(RELEASE.removeprefix("vllm-")), parse_targets(ARCHS))
    plan = marlin.plan(job)
    with tempfile.TemporaryDirectory() as work:
        program = build(Path(work), job, plan, options.optimize)
        agreement = json.loads(subprocess.run([program, "agree"], check=True, capture_output=True).stdout)
        lines = subprocess.run([program, "time"], check=True, capture_output=True).stdout.splitlines()
    rounds = [json.loads(line) for line in lines]
    nanoseconds = {form: statistics.median(one[form] for one in rounds) for form in ("chain", "switch")}
    ratio = statistics.median(one["chain"] / one["switch"] for one in rounds)
    print(f"{len(plan.kernels)} kernels, {agreement['asked']} questions, {agreement['different']} differ")
    print(f"chain {nanoseconds['chain']:.0f} ns, switch {nanoseconds['switch']:.0f} ns, ratio {ratio:.1f}")
    if options.record:
        record = {
            "benchmark": "selector",
            **machine(),
            "compiler": subprocess.run(
                ["g++", "--version"], capture_output=True, text=True, check=True
            ).stdout.splitlines()[0],
            "optimize": options.optimize,
            "kernels": len(plan.kernels),
            **agreement,
            "rounds": len(rounds),
            "chain_ns": nanoseconds["chain"],
            "switch_ns": nanoseconds["switch"],
            "ratio": round(ratio, 2),
        }
        with options.record.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return int(agreement["right"] != len(plan.kernels))


if __name__ == "__main__":
    sys.exit(main())
