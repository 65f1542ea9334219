"""Questions about documents over the OpenAI API, timed or with logprobs; and what a server says on /metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.reuse_answers import Answer
from benchmarks.server import Server

TIMEOUT_S = 3600.0
Item = TypeVar("Item")
Result = TypeVar("Result")


class Timed(NamedTuple):
    """One streamed answer: seconds to its first token, and prompt tokens that were not computed."""

    first_token_s: float
    cached_tokens: int


class Client:
    """One server's OpenAI API."""

    def __init__(self, server: Server, model: Path) -> None:
        self._url = f"{server.base_url}/completions"
        self._model = str(model)
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None))

    async def close(self) -> None:
        """Connections end."""
        await self._http.aclose()

    async def timed(self, prompt: list[int], wish: Any = None, max_tokens: int = 1) -> Timed:
        """Stream an answer. Raises httpx.HTTPError, or RuntimeError where the stream ends early."""
        body = self._body(prompt, wish, max_tokens)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began, first, cached = time.perf_counter(), None, None
        async with self._http.stream("POST", self._url, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if event["choices"] and first is None:
                    first = time.perf_counter() - began
                if event.get("usage"):
                    cached = (event["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        if first is None or cached is None:
            raise RuntimeError(f"an answer to {len(prompt)} tokens ended early")
        return Timed(first, cached)

    async def answer(self, prompt: list[int], wish: Any, max_tokens: int) -> Answer:
        """A whole answer with its logprobs. Raises httpx.HTTPError."""
        body = self._body(prompt, wish, max_tokens)
        body |= {"logprobs": 5, "return_token_ids": True, "return_tokens_as_token_ids": True}
        reply = await self._http.post(self._url, json=body)
        reply.raise_for_status()
        document = reply.json()
        choice, said = document["choices"][0], document["kv_transfer_params"]["redknot_reuse"]
        likeliest = tuple(
            {int(name.removeprefix("token_id:")): float(logprob) for name, logprob in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        )
        return Answer(
            tuple(choice["token_ids"]),
            tuple(choice["logprobs"]["token_logprobs"]),
            likeliest,
            said["segment_tokens"],
            said["prefix_tokens"],
        )

    async def store(self, documents: Sequence[Sequence[int]]) -> None:
        """Have documents computed alone, and stored by a server that stores."""
        for document in documents:
            wish = {"spans": [[0, len(document)]], "reuse": False}
            await self.timed(list(document), wish)

    def _body(self, prompt: list[int], wish: Any, max_tokens: int) -> dict[str, Any]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": max_tokens}
        body |= {"temperature": 0.0, "ignore_eos": True}
        if wish is not None:
            body["vllm_xargs"] = {"redknot_reuse": wish if isinstance(wish, str) else json.dumps(wish)}
        return body


async def from_clients(
    count: int, items: Sequence[Item], ask: Callable[[Item], Awaitable[Result]]
) -> list[Result]:
    """What `ask` makes of each item, `count` at a time, in order; raises what it raises."""
    waiting = iter(list(enumerate(items)))
    results: dict[int, Result] = {}

    async def client() -> None:
        for number, item in waiting:
            results[number] = await ask(item)

    await asyncio.gather(*(client() for _ in range(count)))
    return [results[number] for number in range(len(items))]


def metrics(server: Server) -> dict[str, float]:
    """Samples on /metrics as `name` or `name{label="value"}`, labels of vLLM's own left out, equal ones added up."""
    text = httpx.get(server.base_url.removesuffix("/v1") + "/metrics", timeout=60.0).text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("engine", "model_name")}
            shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            name = f"{sample.name}{{{shown}}}" if shown else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


async def leaks(client: Client, server: Server, seconds: float = 30.0) -> dict[str, float]:
    """What is still held after all requests have ended, by name: empty where nothing is.

    Releases travel with the next step, and gauges with each: small requests make steps until all is given back.
    """
    names = (
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:redknot_reuse_leases",
    )
    until = time.monotonic() + seconds
    while True:
        await client.timed([1, 2, 3], "off")
        now = metrics(server)
        held = {name: now[name] for name in names if now.get(name)}
        if not held or time.monotonic() > until:
            return held
        await asyncio.sleep(0.2)
