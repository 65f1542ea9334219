"""`make demo` on a short question: two real servers, one record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_asks_both_servers_and_records_answers_time_and_memory(
    repo_root: Path, model_path: Path, tmp_path: Path
) -> None:
    record = tmp_path / "demo.json"
    command = [
        *(sys.executable, "-m", "benchmarks.demo", "--json", str(record), "--model-folder", str(model_path)),
        *("--prompt-tokens", "300", "--max-model-len", "4096", "--window", "profile"),
    ]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr + result.stdout
    stock, redknot = json.loads(record.read_text())["outcomes"]
    assert (stock["backend"], redknot["backend"]) == ("CPU_ATTN", "REDKNOT")
    assert stock["right"]
    assert redknot["right"]
    assert stock["prompt_tokens"] == redknot["prompt_tokens"] > 200
    assert min(stock["ttft_seconds"] + redknot["ttft_seconds"]) > 0
    assert redknot["max_concurrency"] > 2 * stock["max_concurrency"]
    assert redknot["kv_bytes_per_request"] < stock["kv_bytes_per_request"] / 2
    assert "maximum concurrency" in result.stdout


def test_an_unknown_model_folder_is_refused_before_any_server_starts(repo_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.demo", "--model-folder", str(tmp_path / "none")]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert result.stderr.strip() == f"run make setup: {tmp_path / 'none'} does not exist"
