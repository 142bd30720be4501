"""Time whole generator processes, with a warm file cache.

Run as PYTHONPATH=src python bench/generate.py [--rounds N] [--record FILE].
Each family is written from nothing, written again with nothing to do, and, for
comparison, written the naive way: everything deleted, then every line rendered as a
template of its own (from finished lines: the naive way plans nothing). All are
interleaved in each round, and medians are compared with the limits. The exit code is
1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARCHS = "7.5,8.0,8.6,8.9,9.0a,10.0,12.0"
RELEASE = "vllm-0.20"
_VALUE = re.compile(r"vllm::\w+|\b\d+\b|\btrue\b|\bfalse\b")  # what differs from line to line


@dataclass
class Contest:
    """One command to be timed.

    Args:
        name: What it is.
        command: Its words.
        prepare: Called before each run, outside the time.
        limit: Most seconds its median may take; None for a mere comparison.
        seconds: Wall time of each run.
        cpu_seconds: Processor time of each run, which others on the machine disturb less.
    """

    name: str
    command: list[str]
    prepare: Callable[[], None]
    limit: float | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run the command once, and keep its time."""
        self.prepare()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        before, start = os.times(), time.perf_counter()
        subprocess.run(self.command, check=True, stdout=subprocess.DEVNULL, env=environment)
        self.seconds.append(time.perf_counter() - start)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        self.cpu_seconds.append(spent)

    def row(self) -> dict[str, object]:
        """Return the result, in seconds."""
        return {
            "name": self.name,
            "median_s": round(statistics.median(self.seconds), 4),
            "min_s": round(min(self.seconds), 4),
            "max_s": round(max(self.seconds), 4),
            "median_cpu_s": round(statistics.median(self.cpu_seconds), 4),
            "limit_s": self.limit,
        }


def contests(work: Path) -> list[Contest]:
    """Return the commands for each family: from nothing, nothing to do, naive."""
    python = [sys.executable, "-m", "billhook", "generate", "--target", RELEASE]
    result = []
    for family, words in [("marlin-moe", ["--arch", ARCHS]), ("machete", [])]:
        fresh, ready, naive = (work / family / kind for kind in ("fresh", "ready", "naive"))
        command = [*python, "--family", family, *words, "--out"]
        subprocess.run(
            [*command, str(ready)],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        naively = [sys.executable, __file__, "--naive", str(ready), str(naive)]
        result += [
            Contest(f"{family}, from nothing", [*command, str(fresh)], lambda out=fresh: _delete(out), 0.6),
            Contest(f"{family}, nothing to do", [*command, str(ready)], lambda: None, 0.3),
            Contest(f"{family}, the naive way", naively, lambda: None),
        ]
    return result


def write_naively(lines_from: Path, out: Path) -> None:
    """Delete `out`, then write the files of `lines_from` there, every line a template of its own."""
    import jinja2

    _delete(out)
    out.mkdir(parents=True)
    for path in sorted(lines_from.glob("[!.]*")):
        text = ""
        for line in path.read_text().splitlines(keepends=True):
            values: list[str] = []

            def name(match: re.Match[str], values: list[str] = values) -> str:
                values.append(match[0])
                return f"{{{{ value_{len(values) - 1} }}}}"

            template = jinja2.Template(_VALUE.sub(name, line), keep_trailing_newline=True)
            text += template.render({f"value_{number}": value for number, value in enumerate(values)})
        (out / path.name).write_text(text)
        if text != path.read_text():
            raise SystemExit(f"the naive way wrote another {path.name}")


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, object]:
    """Describe this machine, the commit and the command."""
    from billhook.measure.machine import find_commit  # not at the top: the naive way is timed whole

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpus": len(list(Path("/dev").glob("nvidia[0-9]*"))),
        "python": platform.python_version(),
    }


def main() -> int:
    """Run the benchmark, or one naive writing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--record", type=Path, help="append the result to this JSONL file")
    parser.add_argument("--naive", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.naive:
        write_naively(*options.naive)
        return 0
    with tempfile.TemporaryDirectory() as work:
        all_contests = contests(Path(work))
        for _ in range(options.rounds):
            for contest in all_contests:
                contest.run()
    rows = [contest.row() for contest in all_contests]
    for row in rows:
        limit = f"limit {row['limit_s']}" if row["limit_s"] else ""
        spread = f"{row['min_s']:.3f} .. {row['max_s']:.3f}, processor {row['median_cpu_s']:.3f}"
        print(f"{row['name']:28} {row['median_s']:8.3f} s  ({spread})  {limit}")
    if options.record:
        record = {"benchmark": "generate", **machine(), "rounds": options.rounds, "rows": rows}
        with options.record.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return int(
        any(contest.limit and statistics.median(contest.seconds) > contest.limit for contest in all_contests)
    )


if __name__ == "__main__":
    sys.exit(main())
