"""The table of measured errors, from what pytest records."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
XML = """<testsuites><testsuite><properties><property name="gpu" value="H100"/>
<property name="torch" value="2.11"/><property name="commit" value="abc"/></properties>
<testcase name="test_other[u4]"/>
<testcase name="test_random_problems_are_within_their_bound[mxfp4]"><properties>
<property name="problems" value="240"/><property name="kernels" value="33"/>
<property name="worst_of_bound" value="0.97"/><property name="worst_rms_of_bound" value="0.43"/>
<property name="error_bf16" value="0.00166"/><property name="plain_error_bf16" value="0.0022"/>
</properties>{more}</testcase></testsuite></testsuites>"""


@pytest.fixture(scope="module")
def errors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("errors", ROOT / "bench/errors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(tmp_path: Path, more: str = "") -> list[str]:
    (tmp_path / "page.md").write_text(
        "before\n<!-- bench/errors.py writes from here -->\nold\n<!-- to here -->\nafter\n"
    )
    (tmp_path / "tests.xml").write_text(XML.format(more=more))
    return [str(tmp_path / "tests.xml"), "--page", str(tmp_path / "page.md")]


def test_the_table_is_written_between_its_marks(errors: ModuleType, tmp_path: Path) -> None:
    errors.main(write(tmp_path))
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "H100, torch 2.11, abc:" in lines
    assert "| mxfp4 | 240 | 33 | 0.97 | 0.43 | 0.00166 | 0.0022 | - | - |" in lines
    assert "old" not in lines
    errors.main(write(tmp_path))
    assert (tmp_path / "page.md").read_text().splitlines() == lines


@pytest.mark.parametrize("more", ["<failure/>", "<error/>"])
def test_what_failed_is_not_written(errors: ModuleType, tmp_path: Path, more: str) -> None:
    arguments = write(tmp_path, more)
    with pytest.raises(SystemExit, match=r"\[mxfp4\] did not pass"):
        errors.main(arguments)
    assert "old" in (tmp_path / "page.md").read_text()


def test_the_page_has_the_marks(errors: ModuleType) -> None:
    text = errors.PAGE.read_text(encoding="utf-8")
    assert text.count(errors.BEGIN) == text.count(errors.END) == 1


def test_the_test_that_is_read_exists(errors: ModuleType) -> None:
    assert f"def {errors.TEST}(" in (ROOT / "tests/gpu/test_formats.py").read_text(encoding="utf-8")
