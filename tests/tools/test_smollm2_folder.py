"""Where the test model is, and what is said when it is not whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import smollm2_folder


def test_each_fault_of_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = smollm2_folder.sha256(Path(__file__))
    monkeypatch.setattr(smollm2_folder, "CHECKSUMS", {"whole": digest, "changed": digest, "gone": digest})
    (tmp_path / "whole").write_bytes(Path(__file__).read_bytes())
    (tmp_path / "changed").write_text("x")
    changed, gone = smollm2_folder.problems(tmp_path)
    assert str(tmp_path / "changed") in changed
    assert digest in changed
    assert gone == f"{tmp_path / 'gone'} is missing"


def test_a_missing_folder_is_one_problem(tmp_path: Path) -> None:
    assert smollm2_folder.problems(tmp_path / "none") == [f"{tmp_path / 'none'} does not exist"]


def test_the_path_is_all_that_is_printed(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "-m", "tools.smollm2_folder", "--model-folder", str(tmp_path)]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == (f"{tmp_path}\n", "")
