"""`redknot report`: what it writes, warns of and refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from vllm_redknot.report import page as page_module


@pytest.fixture
def results(heads_file: Path) -> Path:
    """The folder of a head-class file."""
    return heads_file.parent


def test_the_page_is_beside_its_documents_unless_named(redknot: Run, results: Path, tmp_path: Path) -> None:
    result = redknot("report", results)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(results / "report.html")
    first = (results / "report.html").read_text()
    assert first.startswith("<!doctype html>")
    assert redknot("report", results, "-o", tmp_path / "other.htm").exit_code == 0
    assert (tmp_path / "other.htm").read_text() == first


def test_a_file_that_is_left_out_is_a_warning(redknot: Run, results: Path) -> None:
    (results / "broken.json").write_text("{")
    result = redknot("report", results, "--json")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("redknot: warning: broken.json is left out")
    document = json.loads(result.stdout)
    assert document["files"] == ["heads.json"]
    assert len(document["warnings"]) == 1
    assert "broken.json" in Path(document["report"]).read_text()


def test_without_documents_there_is_no_page(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "holds no document for a report" in fails("report", tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_none_is_named(fails: Callable[..., str], heads_file: Path) -> None:
    assert "heads.json is no folder" in fails("report", heads_file)


def test_a_page_never_replaces_a_result(fails: Callable[..., str], heads_file: Path) -> None:
    before = heads_file.read_text()
    assert "ends in .html" in fails("report", heads_file.parent, "-o", heads_file, status=2)
    assert heads_file.read_text() == before


def test_without_jinja_the_remedy_is_named(
    fails: Callable[..., str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, page_module.__name__)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install jinja2" in fails("report", results)


def test_a_report_needs_neither_vllm_nor_torch(results: Path) -> None:
    code = f"""
import sys
sys.modules.update(vllm=None, torch=None, transformers=None, matplotlib=None)
from vllm_redknot.cli.main import app
app(["report", {str(results)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", [40, 80, 200])
def test_report_explains_itself_at_any_width(redknot: Run, width: int) -> None:
    result = redknot("report", "--help", width=width)
    assert result.exit_code == 0
    assert "Usage: redknot report" in result.stdout
    assert "Example" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width
