"""Real servers: stock `vllm serve` is the same with and without the plugin; a refusal is what a user reads last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server import ServerError, serving

pytestmark = pytest.mark.slow

STOCK = ["--enforce-eager", "--max-model-len", "1024", "--block-size", "32", "--kv-cache-memory-bytes", "64M"]
PROMPTS = ["The capital of France is", "one two three four five six seven " * 40, "def main():"]
# What differs between any two starts: times, process ids, ports, measured figures, random names, orders of sets.
CHANGING = re.compile(
    r"\(\w+ pid=\d+\)|\b\d\d-\d\d \d\d:\d\d:\d\d\b|\b\d+\.\d+\b|pid=\d+|:\d{4,5}\b|'port': \d+|[0-9a-f]{8,}|\[\d+\]"
    r"|Methods: .*"
)
OURS = "Registered new attention backend: REDKNOT"


def answers(base_url: str) -> list[Any]:
    """Greedy tokens and their logprobs."""
    found = []
    for prompt in PROMPTS:
        body = {
            "model": "stock",
            "prompt": prompt,
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": 3,
            "seed": 1,
        }
        reply = httpx.post(f"{base_url}/completions", json=body, timeout=120).raise_for_status().json()
        found.append((reply["choices"][0]["text"], reply["choices"][0]["logprobs"], reply["usage"]))
    return found


def start_lines(log: Path) -> list[str]:
    """What a server says until it is ready, without what changes from start to start."""
    text = log.read_text(errors="replace").partition("Application startup complete")[0]
    lines = (
        CHANGING.sub("", line) for line in text.splitlines() if re.search(r"\b(INFO|WARNING|ERROR)\b", line)
    )
    return sorted(line for line in lines if OURS not in line)


def test_a_stock_server_is_the_same_with_and_without_the_plugin(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    flags = [*STOCK, "--served-model-name", "stock"]
    seen = {}
    for name, plugins in (("with", None), ("without", "")):
        if plugins is not None:
            monkeypatch.setenv("VLLM_PLUGINS", plugins)
        log = tmp_path / f"{name}.log"
        with serving(model_path, flags, log) as server:
            seen[name] = (answers(server.base_url), server.capacity(), start_lines(log))
        assert (OURS in log.read_text()) == (name == "with")
    assert seen["with"][0] == seen["without"][0]
    assert seen["with"][1] == seen["without"][1]
    assert seen["with"][2] == seen["without"][2]


def test_the_last_line_of_a_refused_server_says_what_to_change(model_path: Path, tmp_path: Path) -> None:
    flags = ["--attention-backend", "REDKNOT", "--additional-config", '{"redknot": {"windw": 1}}']
    log = tmp_path / "refused.log"
    with pytest.raises(ServerError, match="ended with status 1"), serving(model_path, flags, log):
        pytest.fail("it started")
    text = log.read_text(errors="replace")
    assert "redknot.windw is no setting: did you mean window?" in text.strip().splitlines()[-1]
    assert "EngineCore" not in text
