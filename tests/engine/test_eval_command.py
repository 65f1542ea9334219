"""`redknot eval` with real engines: the same as stock where every head is global, and far from it where none is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.engine.harness import FP32_BOUND, engine
from tests.engine.head_files import write
from vllm_redknot.evals.cases import single_needle
from vllm_redknot.evals.engine_worker import _answer
from vllm_redknot.evals.requests import Request

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("heads", ["all-global", "local"])
def test_logprobs_are_those_of_a_prompt_that_holds_the_answer(
    model_path: Path, tmp_path: Path, heads: str
) -> None:
    """Greedy tokens are the forced ones with all heads global, and part from them with none."""
    tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
    case = single_needle(tokenizer, 400, 0.2, seed=0)
    whole = (*case.prompt, *case.answer)
    settings = {"heads": heads if heads == "all-global" else write(tmp_path, [[(64, 4)] * 3] * 30)}
    with engine(model_path, settings, dtype="float32") as server:
        found = _answer(server.llm, Request("a", case.prompt, len(case.answer) + 2, forced=case.answer))
        (expected,) = server.complete([whole], max_tokens=1, prompt_logprobs=True)
        scored = _answer(server.llm, Request("b", whole, spans=((1, 5), (300, 400)), top=3)).scored
    right = tokenizer.decode(list(case.answer)).strip()
    assert (right in found.text) == (heads == "all-global")
    logprobs = np.array([0.0, *expected.prompt_logprobs])
    assert found.forced_logprobs == pytest.approx(logprobs[len(case.prompt) :], abs=FP32_BOUND)
    assert scored is not None
    rows = [*range(1, 5), *range(300, 400)]
    assert scored.ids[:, 0].tolist() == [whole[row] for row in rows]
    assert scored.logprobs[:, 0] == pytest.approx(logprobs[rows], abs=FP32_BOUND)
    assert (np.diff(scored.logprobs[:, 1:], axis=1) <= 0).all()
    assert (scored.logprobs[:, 0] <= scored.logprobs[:, 1] + FP32_BOUND).all()


def evaluate(model: Path, output: Path, heads: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Totals by task and metric."""
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "eval", str(model), "--heads", heads, "--json"),
        *("--output", str(output), "--lengths", "600", "--limit", "2", "--no-beyond-window"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    suites = json.loads(done.stdout)["suites"]
    return {
        (cell["task"], cell["metric"]): cell
        for cells in suites.values()
        for cell in cells
        if cell["depth"] is None
    }


def test_what_head_classes_cost_is_seen(model_path: Path, tmp_path: Path) -> None:
    same = evaluate(model_path, tmp_path / "global", "all-global")
    # The same requests: stock's answers serve the second comparison too.
    (tmp_path / "local").mkdir()
    shutil.copy(tmp_path / "global" / "answers-stock.jsonl", tmp_path / "local")
    lost = evaluate(model_path, tmp_path / "local", write(tmp_path, [[(64, 4)] * 3] * 30))
    assert same["needle", "found"]["stock"]["value"] == 1.0
    assert same["needle", "found"]["redknot"]["value"] == 1.0
    assert lost["needle", "found"]["redknot"]["value"] == 0.0
    assert same["essays", "kl"]["redknot"]["value"] < 0.01
    assert lost["essays", "kl"]["redknot"]["value"] > 0.1
    assert same["essays", "top-1 agreement"]["redknot"]["value"] > 0.95
    assert lost["essays", "top-1 agreement"]["redknot"]["value"] < 0.9
    assert abs(same["essays", "nll"]["difference"]["value"]) < 0.02
    assert 2 < same["essays", "nll"]["stock"]["value"] < 5
    for task in ("squad", "hotpotqa"):
        assert abs(same[task, "nll"]["difference"]["value"]) < 0.1
    log = (tmp_path / "global" / "stock.log").read_text()
    assert "REDKNOT" not in log


def test_an_ablation_tells_heads_from_rows(model_path: Path, tmp_path: Path) -> None:
    """Local heads alone lose the needle; rows that skip the whole FFN do as well, and each part shows its own loss."""
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "eval", str(model_path), "--json", "--ablation"),
        *("--heads", str(write(tmp_path, [[(64, 4)] * 3] * 30)), "--rows", '{"ffn_from": 24, "recent": 32}'),
        *("--output", str(tmp_path / "run"), "--suite", "needle", "--lengths", "400", "--limit", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parts = {
        name: {
            (cell["task"], cell["metric"]): cell["redknot"]["value"]
            for cell in part["suites"]["needle"]
            if cell["depth"] is None
        }
        for name, part in document["ablation"].items()
    }
    nll = {name: part["needle", "nll"] for name, part in parts.items()}
    stock = next(cell["stock"]["value"] for cell in document["suites"]["needle"] if cell["metric"] == "nll")
    assert nll["heads"] > stock + 1
    assert abs(nll["rows"] - stock) < 0.5
    assert nll["rows"] != stock
    assert nll["both"] != nll["heads"]
    for name, skips in (("stock", False), ("heads", False), ("rows", True), ("redknot", True)):
        log = (tmp_path / "run" / f"{name}.log").read_text()
        assert ("rows of long prompts" in log) is skips
