"""Tensor parallelism changes nothing of what tokens skip. On a CPU: two workers, a small model in fp32."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import FP32_BOUND, largest_difference
from tests.engine.head_files import write
from tests.engine.small_models import SHAPES, save

pytestmark = pytest.mark.slow

LATE = {"ffn_from": 1, "attention_from": 2, "sink": 2, "recent": 8}


def answers(model: Path, settings: dict[str, Any], ranks: int) -> tuple[list[dict[str, Any]], str]:
    """What a server of so many ranks answers, and its log."""
    command = [
        sys.executable,
        "-m",
        "tests.engine.rows_two_ranks",
        str(model),
        json.dumps(settings),
        str(ranks),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    return json.loads(lines[-1]), done.stdout + done.stderr


def test_two_ranks_skip_what_one_does(tmp_path: Path) -> None:
    shape = SHAPES["gqa_4"]
    # Both ranks have heads of the same classes, so that none is promoted.
    heads = write(tmp_path, [[(50, 4)] * 2, [None] * 2, [(32, 1)] * 2])
    model = save(shape, tmp_path / "model")
    # The norms a sparse FFN goes by are those of the whole output, of which each rank has a part.
    rows = {**LATE, "sparse_ffn": {"rule": "relative_norm", "thresholds": {"0": 0.8}}}
    one, said = answers(model, {"heads": heads, "rows": rows}, ranks=1)
    two, log = answers(model, {"heads": heads, "rows": rows}, ranks=2)
    assert "rows of long prompts" in said
    assert "rows of long prompts" in log
    for left, right in zip(one, two, strict=True):
        assert left["tokens"] == right["tokens"]
        assert largest_difference(left["logprobs"], right["logprobs"]) < FP32_BOUND
