"""The real OpenAI server with reuse that a receipt allows and with row skipping; its engine is another process."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from vllm.engine.arg_utils import EngineArgs

from benchmarks.reuse_client import metrics
from benchmarks.reuse_trace_runs import PREFIX
from benchmarks.server import Server, serving
from tests.engine.conftest import Cut
from tests.reuse.test_receipt import DOCUMENT
from vllm_redknot.benchmarking import client
from vllm_redknot.evals.texts import essays
from vllm_redknot.reuse.identity import fingerprint_of
from vllm_redknot.reuse.receipt import Receipt, write_receipt
from vllm_redknot.reuse.scope import FILE_NAME
from vllm_redknot.support import resolve_model_heads, resolve_model_rows

pytestmark = pytest.mark.slow

ROWS = {"ffn_from": 20, "attention_from": 24, "sink": 4, "recent": 128}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def settings(model_path: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a server whose model has a receipt, for a boundary of 16."""
    common = {"store": str(store), "rows": ROWS, "boundary": 16}
    config = EngineArgs(
        model=str(model_path),
        dtype="float32",
        enforce_eager=True,
        attention_backend="REDKNOT",
        additional_config={"redknot": {**common, "reuse": "force"}},
    ).create_engine_config()
    fingerprint = fingerprint_of(config, resolve_model_heads(config).profile, resolve_model_rows(config))
    path = tmp_path_factory.mktemp("receipt") / "receipt.json"
    write_receipt(path, Receipt.model_validate({**DOCUMENT, "fingerprint": fingerprint.to_json()}))
    return {**common, "reuse": "on", "receipt": str(path)}


@pytest.fixture(scope="module")
def server(
    model_path: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
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
        *("--additional-config", json.dumps({"redknot": settings}), "--enable-prompt-tokens-details"),
        *("--middleware", "vllm_redknot.reuse.chat_documents.ChatDocuments"),
    ]
    with serving(model_path, flags, tmp_path_factory.mktemp("server") / "log", timeout=600) as running:
        yield running


def complete(
    server: Server, model: Path, prompt: list[int], wish: Any, max_tokens: int = 8, **xargs: Any
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": str(model),
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.0,
    }
    if wish is not None:
        xargs["redknot_reuse"] = wish if isinstance(wish, str) else json.dumps(wish)
    if xargs:
        body["vllm_xargs"] = xargs
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


def test_metrics_say_what_was_reused_and_what_is_held(server: Server, model_path: Path, cut: Cut) -> None:
    document, question = cut(12_000, 300), cut(15_000, 20)
    before = metrics(server)
    complete(server, model_path, document, {"spans": [[0, 300]]}, max_tokens=1)
    complete(server, model_path, [*question, *document, *question], {"spans": [[20, 320]]})
    complete(server, model_path, cut(20_000, 100), "off")

    def grown(name: str) -> float:
        return metrics(server)[PREFIX + name] - before[PREFIX + name]

    assert grown('tokens_total{kind="segment"}') == 300 - 16
    assert grown('tokens_total{kind="prefix"}') == 0
    assert grown('tokens_total{kind="recomputed"}') == 300 + 56 + 100
    assert grown('hits_total{tier="memory"}') == 1
    assert grown("stored_total") == 1
    assert grown("requests_total") == 3
    assert grown("served_bytes_total") == grown('store_bytes{tier="memory"}') > 2**20
    assert grown("faults_total") == grown('misses_total{reason="corrupt"}') == 0
    # The file is written in the background, and metrics come with steps.
    until = time.monotonic() + 30
    while grown('store_bytes{tier="disk"}') == 0 or metrics(server)[PREFIX + "leases"]:
        assert time.monotonic() < until
        complete(server, model_path, cut(21_000, 3), "off", max_tokens=1)
    assert grown("written_bytes_total") > grown('store_bytes{tier="disk"}') > 2**20
    assert metrics(server)[PREFIX + "segments"] == before[PREFIX + "segments"] + 1


def test_a_request_gets_the_receipts_boundary_and_none_of_the_store_with_rows_off(
    server: Server, model_path: Path, cut: Cut
) -> None:
    document, question = cut(0, 300), cut(16_000, 150)
    prompt, spans = [*question, *document, *question], [[150, 450]]
    before = client.row_counts(server)
    less = complete(server, model_path, prompt, {"spans": spans, "boundary": 4})
    told = less["kv_transfer_params"]["redknot_reuse"]
    assert told["segment_tokens"] == 300 - 16
    assert told["problem"] == "boundary 4 is less than 16, which the server's receipt is for: 16 was used"
    # Of 600 tokens 284 are loaded; 4 sinks and 128 recent ones of the others skip nothing.
    grown = {
        kind: (rows.computed - before[kind].computed, rows.skipped - before[kind].skipped)
        for kind, rows in client.row_counts(server).items()
    }
    computed, skipped = 30 * 316, 316 - 132
    assert grown == {
        "attention": (computed - 6 * skipped, 6 * skipped),
        "ffn": (computed - 10 * skipped, 10 * skipped),
    }
    off = complete(server, model_path, prompt, {"spans": spans}, redknot_rows="off")
    told = off["kv_transfer_params"]["redknot_reuse"]
    assert (told["segment_tokens"], told["prefix_tokens"]) == (0, 0)
    assert 'redknot_rows is "off" in this request' in told["problem"]
    assert all(
        (rows.computed, rows.skipped)
        == (grown[kind][0] + before[kind].computed, grown[kind][1] + before[kind].skipped)
        for kind, rows in client.row_counts(server).items()
    )


def test_documents_of_a_chat_are_marked_in_its_content_parts(server: Server, model_path: Path) -> None:
    documents = [essays()[begin : begin + 1_200].strip() for begin in (80_000, 90_000)]
    marked = [{"type": "text", "text": text, "redknot_document": True} for text in documents]
    ours = OpenAI(base_url=server.base_url, api_key="none", timeout=300, max_retries=0)

    def chat(system: str, content: list[Any], **wish: Any) -> tuple[dict[str, Any], int]:
        answer = ours.chat.completions.create(
            model=str(model_path),
            messages=[{"role": "system", "content": system}, {"role": "user", "content": content}],
            max_tokens=4,
            extra_body={"vllm_xargs": {"redknot_reuse": json.dumps(wish)}} if wish else None,
        )
        told: dict[str, Any] = answer.model_extra["kv_transfer_params"]["redknot_reuse"]
        return told, answer.usage.prompt_tokens_details.cached_tokens

    question = {"type": "text", "text": "What do they say?"}
    # The template stands before a chat's documents, and this server stores what begins a prompt.
    for system in ("Answer.", "Be short."):
        told, cached = chat(system, [*marked, question])
        assert (told["segment_tokens"], cached) == (0, told["prefix_tokens"])
    for text in documents:
        ours.completions.create(
            model=str(model_path),
            prompt=text,
            max_tokens=1,
            extra_body={
                "add_special_tokens": False,
                "vllm_xargs": {"redknot_reuse": json.dumps({"texts": [text], "reuse": False})},
            },
        )
    told, cached = chat("You are brief.", [*reversed(marked), question])
    assert (told["segments"], told.get("problem")) == (2, None)
    assert told["segment_tokens"] > 400
    assert told["recomputed_tokens"] < 100
    assert cached == told["prefix_tokens"] + told["segment_tokens"]
    more, _ = chat("You are terse.", [*reversed(marked), question], boundary=32)
    assert told["segment_tokens"] - more["segment_tokens"] == 2 * 16
    other = {**question, "redknot_document": True, "text": "A text that the template leaves as it is."}
    assert chat("You are curt.", [other, *marked, question])[0]["segments"] == 2


def test_a_wish_that_makes_no_sense_is_answered_and_explained(
    server: Server, model_path: Path, cut: Cut
) -> None:
    answer = complete(server, model_path, cut(9_000, 100), {"spans": [[0, 101]]})
    assert "0 <= begin < end <= 100" in answer["kv_transfer_params"]["redknot_reuse"]["problem"]


def test_a_server_that_is_ended_leaves_whole_segments(server: Server, store: Path) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    files = [path.name for path in store.rglob("*") if path.is_file() and path.name.endswith(".safetensors")]
    assert len(files) == 5
    assert all(FILE_NAME.fullmatch(name) for name in files)
