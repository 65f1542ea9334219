"""`redknot bench` with real servers and vLLM's own client, as short as it gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_a_real_run_measures_both_sides_and_is_not_repeated(model_path: Path, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "bench", str(model_path), "-o", str(tmp_path)),
        *("--quick", "--enforce-eager", "--only", "itl"),
        *("--short", "2x48", "--long", "2x48", "--max-model-len", "2K", "--kv-bytes", "256MiB", "--json"),
        *("--batched-tokens", "512", "--window", "128"),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("REDKNOT_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {row["metric"]: row for row in document["rows"]}
    assert set(rows) == {*("inter-token latency", "KV bytes of a request", "maximum concurrency")}
    for side in ("stock", "redknot"):
        assert rows["inter-token latency"][side]["median"] > 0
    # Every token of 30 layers x 3 KV heads of 64, K and V of 2 bytes, at 2048 tokens.
    assert rows["KV bytes of a request"]["stock"]["median"] == pytest.approx(
        2048 * 30 * 3 * 64 * 2 * 2, rel=0.02
    )
    assert rows["maximum concurrency"]["ratio"] > 1.2
    # The rest of the machine's figures say nothing about a second run: it has none of its own.
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(again.stdout) == document
