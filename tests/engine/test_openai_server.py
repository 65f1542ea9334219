"""The real OpenAI server under many clients: right answers, no page lost, a clean end."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from benchmarks.server import Server, serving
from tests.engine.conftest import Cut

pytestmark = pytest.mark.slow

CLIENTS = 32
FLAGS = [
    *("--attention-backend", "REDKNOT", "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048"),
    *("--max-num-batched-tokens", "512", "--block-size", "32", "--kv-cache-memory-bytes", str(2**28)),
]
USAGE = re.compile(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(model_path, FLAGS, log) as running:
        yield running


def kv_usage(server: Server) -> float:
    """Share of the KV blocks that requests hold, by the server's own metric."""
    text = httpx.get(f"{server.base_url.removesuffix('/v1')}/metrics").text
    found = USAGE.search(text)
    assert found, "the server has no KV-usage metric"
    return float(found.group(1))


async def ask(client: AsyncOpenAI, model: Path, prompt: list[int], leave_after: int | None = None) -> str:
    """Stream 24 greedy tokens; a client that leaves closes its connection after so many pieces."""
    pieces: list[str] = []
    stream = await client.completions.create(
        model=str(model), prompt=prompt, max_tokens=24, temperature=0.0, stream=True
    )
    async for event in stream:
        pieces.append(event.choices[0].text)
        if leave_after is not None and len(pieces) >= leave_after:
            await stream.close()
            break
    return "".join(pieces)


async def crowd(server: Server, model: Path, prompts: list[list[int]]) -> tuple[list[str], list[str]]:
    """Each prompt alone, then all at once while every fourth client leaves early."""
    async with AsyncOpenAI(base_url=server.base_url, api_key="none", timeout=600, max_retries=0) as client:
        alone = [await ask(client, model, prompt) for prompt in prompts]
        leaving = [2 if index % 4 == 3 else None for index in range(len(prompts))]
        together = await asyncio.gather(
            *(ask(client, model, prompt, leave) for prompt, leave in zip(prompts, leaving, strict=True))
        )
        return alone, list(together)


def test_32_streaming_clients_get_right_answers_and_no_page_is_lost(
    server: Server, model_path: Path, cut: Cut
) -> None:
    prompts = [cut(700 * index, 20 + 37 * (index % 16)) for index in range(CLIENTS)]
    assert kv_usage(server) == 0.0
    alone, together = asyncio.run(crowd(server, model_path, prompts))
    for index, (expected, got) in enumerate(zip(alone, together, strict=True)):
        # Who leaves early has the beginning of the answer.
        assert expected.startswith(got) if index % 4 == 3 else expected == got
        assert got
    deadline = time.monotonic() + 20
    while kv_usage(server) > 0.0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert kv_usage(server) == 0.0


def test_sigterm_ends_the_server_and_its_processes_cleanly(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    deadline = time.monotonic() + 20
    while group_alive(server.process.pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not group_alive(server.process.pid)
    log = server.log.read_text()
    # vLLM's own output loop may report that the engine it was told to end has ended; nothing else may fail.
    assert log.count("Traceback") == log.count("EngineDeadError: ")
    assert "REDKNOT: 90 head segments" in log


def group_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
