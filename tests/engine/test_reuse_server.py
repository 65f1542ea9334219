"""The real OpenAI server with reuse, worker and scheduler in processes of their own."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server import Server, serving
from tests.engine.conftest import Cut
from vllm_redknot.reuse.scope import FILE_NAME

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(model_path: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"redknot": {"reuse": "force", "store": str(store)}}
    flags = [
        *(
            "--attention-backend",
            "REDKNOT",
            "--enforce-eager",
            "--dtype",
            "float32",
            "--max-model-len",
            "2048",
        ),
        *("--max-num-batched-tokens", "512", "--block-size", "32", "--kv-cache-memory-bytes", str(2**28)),
        *("--additional-config", json.dumps(settings), "--enable-prompt-tokens-details"),
    ]
    with serving(model_path, flags, tmp_path_factory.mktemp("server") / "log", timeout=600) as running:
        yield running


def complete(
    server: Server, model: Path, prompt: list[int], wish: Any, max_tokens: int = 8
) -> dict[str, Any]:
    body = {"model": str(model), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
    if wish is not None:
        body["vllm_xargs"] = {"redknot_reuse": wish if isinstance(wish, str) else json.dumps(wish)}
    answer = httpx.post(f"{server.base_url}/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_documents_sent_alone_are_reused_in_another_order_and_the_response_says_so(
    server: Server, model_path: Path, cut: Cut, store: Path
) -> None:
    first, second, question = cut(0, 300), cut(2_000, 400), cut(5_000, 20)
    for document in (first, second):
        complete(server, model_path, document, {"spans": [[0, len(document)]]}, max_tokens=1)
    prompt = [*question, *second, *first, *question]
    spans = [[20, 420], [420, 720]]
    reused = complete(server, model_path, prompt, {"spans": spans})
    assert reused["kv_transfer_params"]["redknot_reuse"] == {
        "prefix_tokens": 0,
        "segment_tokens": 700 - 32,
        "recomputed_tokens": 40 + 32,
        "segments": 2,
    }
    assert reused["usage"]["prompt_tokens_details"]["cached_tokens"] == 668
    whole = complete(server, model_path, prompt, {"spans": spans, "boundary": 2_000})
    dense = complete(server, model_path, prompt, "off")
    assert whole["choices"][0]["text"] == dense["choices"][0]["text"]
    assert len(list(store.rglob("*.safetensors"))) == 2


def test_a_wish_that_makes_no_sense_is_answered_and_explained(
    server: Server, model_path: Path, cut: Cut
) -> None:
    answer = complete(server, model_path, cut(9_000, 100), {"spans": [[0, 101]]})
    assert "0 <= begin < end <= 100" in answer["kv_transfer_params"]["redknot_reuse"]["problem"]


def test_a_server_that_is_ended_leaves_whole_segments(server: Server, store: Path) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    files = [path.name for path in store.rglob("*") if path.is_file() and path.name.endswith(".safetensors")]
    assert len(files) == 2
    assert all(FILE_NAME.fullmatch(name) for name in files)
