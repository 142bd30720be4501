"""Write the table of measured errors in docs/numerics.md from what the GPU tests recorded.

Run as
    pytest -m gpu tests/gpu/test_formats.py -o junit_family=xunit1 --junitxml formats.xml
    python bench/errors.py formats.xml
The first needs a GPU, the second nothing.
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "numerics.md"
BEGIN, END = "<!-- bench/errors.py writes from here -->\n", "<!-- to here -->\n"
TEST = "test_random_problems_are_within_their_bound"
HEAD = (
    "format",
    "problems",
    "kernels",
    "worst error",
    "worst RMS",
    "bf16",
    "bf16, plain",
    "fp16",
    "fp16, plain",
)
KEYS = (
    "problems",
    "kernels",
    "worst_of_bound",
    "worst_rms_of_bound",
    "error_bf16",
    "plain_error_bf16",
    "error_f16",
    "plain_error_f16",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("xml", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    options = parser.parse_args(arguments)
    text = options.page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{options.page}: no lines {BEGIN.strip()!r} and {END.strip()!r} to write between")
    aside = options.page.with_suffix(".new")
    aside.write_text(before + begin + render(options.xml) + end + after, encoding="utf-8")
    aside.replace(options.page)


def render(path: Path) -> str:
    """Return the table, and where it was measured.

    Args:
        path: What pytest --junitxml wrote.

    Raises:
        SystemExit: It holds no such test, one that failed, or none of its numbers.
    """
    root = ET.parse(path).getroot()
    where = {one.get("name"): one.get("value") for one in root.iterfind(".//testsuite/properties/property")}
    rows = []
    for case in root.iterfind(".//testcase"):
        name, _, parameter = str(case.get("name")).partition("[")
        if name != TEST:
            continue
        found = {one.get("name"): one.get("value") for one in case.iterfind("properties/property")}
        if case.find("failure") is not None or case.find("error") is not None or "problems" not in found:
            raise SystemExit(f"{path}: {case.get('name')} did not pass; nothing is written")
        rows.append((parameter.removesuffix("]"), *(found.get(key) or "-" for key in KEYS)))
    if not rows:
        raise SystemExit(f"{path}: no results of {TEST}")
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{where.get('gpu', 'unknown GPU')}, torch {where.get('torch')}, {where.get('commit')}:\n\n{table}"


if __name__ == "__main__":
    main()
