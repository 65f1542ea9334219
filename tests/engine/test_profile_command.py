"""`redknot profile` as a whole: its file is read and served, and a run that was killed goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.engine.conftest import Cut
from tests.engine.harness import FP32_BOUND, engine, largest_difference
from tests.engine.oracle import MaskedModel
from vllm_redknot.heads.formats import load_profile

pytestmark = pytest.mark.slow

LAYERS, KV_HEADS = 3, 2
TEXTS, CHECKED = 4, 2
RESULTS = 3 * TEXTS + 2 * 3 * CHECKED
"""Each text that scores once; each text that verifies with the dense model and with the profile."""


@pytest.fixture(scope="module")
def tiny(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model behind a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=json.loads((model_path / "config.json").read_text())["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        head_dim=64,
        max_position_embeddings=1024,
        initializer_range=0.15,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_path / name, folder)
    return folder


def redknot(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vllm_redknot.cli", *map(str, arguments)]


def profile(model: Path, output: Path) -> list[str]:
    """A short run; a random model finds no needle, with or without its profile."""
    return redknot(
        *("profile", model, "-o", output, "--kv-share", 0.5, "--context", 512, "--dtype", "float32"),
        *("--windows", "32,64", "--lengths", 400, "--texts", TEXTS),
        *("--check-lengths", 400, "--check-texts", CHECKED, "--max-nll-increase", 100),
    )


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    # No bar where nobody watches, ours or transformers'.
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("made") / "heads.json"
    assert str(output) in run(profile(tiny, output))
    return output


def test_the_file_is_inspected_and_served_as_it_says(tiny: Path, made: Path, cut: Cut) -> None:
    described = json.loads(run(redknot("inspect", made, "--json")))
    assert described["provenance"]["tool"] == "redknot profile"
    chosen = load_profile(made)
    heads = [
        [
            None if seen.window is None else (seen.window, seen.sink)
            for seen in (chosen.visibility(layer, head) for head in range(KV_HEADS))
        ]
        for layer in range(LAYERS)
    ]
    local = [limits for row in heads for limits in row if limits is not None]
    assert 0 < len(local) < LAYERS * KV_HEADS
    prompt = cut(0, 300)
    model = MaskedModel(tiny, torch.float32)
    expected = model.prompt_logprobs(prompt, heads)
    with engine(tiny, {"heads": str(made)}, dtype="float32", max_model_len=1024) as server:
        (got,) = server.complete([prompt], max_tokens=1, prompt_logprobs=True)
    assert largest_difference(got.prompt_logprobs, expected) < FP32_BOUND
    dense = model.prompt_logprobs(prompt, [[None] * KV_HEADS] * LAYERS)
    assert largest_difference(expected, dense) > 0.1


def whole_lines(path: Path) -> list[bytes]:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def without_date(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    del document["provenance"]["date"]
    return document


def test_a_run_that_was_killed_goes_on_and_ends_as_if_nothing_had_been(
    tiny: Path, made: Path, tmp_path: Path
) -> None:
    output = tmp_path / "heads.json"
    journal = tmp_path / "heads.json.journal"
    process = subprocess.Popen(profile(tiny, output), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while len(whole_lines(journal)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = whole_lines(journal)
    assert 3 <= len(kept) < 1 + RESULTS
    assert not output.exists()

    run(profile(tiny, output))
    after = whole_lines(journal)
    assert after[: len(kept)] == kept
    # What was kept is not computed again: every result is there once.
    keys = [json.loads(line)["key"] for line in after[1:]]
    assert len(keys) == len(set(keys)) == RESULTS
    assert without_date(output) == without_date(made)
    assert (tmp_path / "heads.json.evidence.json").read_bytes() == (
        made.with_name("heads.json.evidence.json").read_bytes()
    )
