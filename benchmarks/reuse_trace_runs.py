"""The trace against servers: timed from several clients, and with a store that is damaged meanwhile."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.reuse_answers import BOUND, Answer, difference, reused_sets
from benchmarks.reuse_client import Client, Timed, from_clients, leaks, metrics
from benchmarks.reuse_faults import Faults
from benchmarks.reuse_trace import Trace, TraceRequest, percentile
from benchmarks.server import Server
from vllm_redknot.config import DEFAULT_BOUNDARY
from vllm_redknot.reuse.folder import StoreFolder

STOCK = "stock"
OURS = "redknot"
PREFIX = "vllm:redknot_reuse_"
TRIES = 3
"""A document may miss the reference by chance, as where a disk is slow: it is asked again."""


async def timed_trace(
    server: Server, side: str, model: Path, trace: Trace, clients: int, answer_tokens: int
) -> dict[str, Any]:
    """Seconds to first token of every request, what was not computed, and what is held afterwards."""
    client = Client(server, model)
    await client.timed([1, 2, 3], "off")

    async def ask(request: TraceRequest) -> Timed:
        wish = {"spans": trace.spans(request)} if side == OURS else None
        return await client.timed(trace.prompt(request), wish, answer_tokens)

    began = time.perf_counter()
    found = await from_clients(clients, trace.requests, ask)
    seconds = time.perf_counter() - began
    held = await leaks(client, server)
    now = metrics(server)
    await client.close()
    times = [row.first_token_s for row in found]
    prompt_tokens = sum(len(trace.prompt(request)) for request in trace.requests)
    return {
        "requests": len(found),
        "seconds": seconds,
        "first_token_s": times,
        "first_token_p50_s": percentile(times, 0.5),
        "first_token_p95_s": percentile(times, 0.95),
        "prompt_tokens": prompt_tokens,
        "token_hit_rate": sum(row.cached_tokens for row in found) / prompt_tokens,
        "reuse": {key.removeprefix(PREFIX): value for key, value in now.items() if _is_told(key, value)},
        "held": held,
        "passed": not held,
    }


async def faulty(
    damaged: Server,
    sound: Server,
    store: Path,
    model: Path,
    trace: Trace,
    clients: int,
    answer_tokens: int,
    faults: int,
    seed: int,
) -> dict[str, Any]:
    """The trace while `store`, the directory of `damaged`, has faults; every answer against `sound`.

    `passed` says that every request was answered, within `BOUND`, and that nothing is held.
    """
    client = Client(damaged, model)
    await client.store(trace.documents)
    maker, ended = Faults(store, seed), itertools.count(1)
    due = [round(len(trace.requests) * (number + 0.5) / faults) for number in range(faults)]

    async def ask(request: TraceRequest) -> Answer | None:
        answer = None
        with suppress(httpx.HTTPError):
            answer = await client.answer(
                trace.prompt(request), {"spans": trace.spans(request)}, answer_tokens
            )
        # One that finds no file to happen to stays due.
        number = next(ended)
        reached = sum(at <= number for at in due)
        while maker.made.total() < reached and maker.make() is not None:
            pass
        return answer

    answers = await from_clients(clients, trace.requests, ask)
    maker.end()
    held = await leaks(client, damaged)
    now = metrics(damaged)
    await client.close()
    reference = Client(sound, model)
    await reference.store(trace.documents)
    rows = [
        await _compared(reference, trace, request, answer, answer_tokens)
        for request, answer in zip(trace.requests, answers, strict=True)
        if answer is not None
    ]
    await reference.close()
    wrong = sum(row["difference"] > BOUND for row in rows)
    return {
        "requests": len(answers),
        "lost": answers.count(None),
        "faults": dict(maker.made),
        "documents": sum(len(request.documents) for request in trace.requests),
        "documents_reused": sum(row["reused"] for row in rows),
        "answers_with_all_reused": sum(row["all_reused"] for row in rows),
        "bound": BOUND,
        "wrong_answers": wrong,
        "largest_difference": max(row["difference"] for row in rows),
        "largest_difference_from_all_reused": max(row["from_all_reused"] for row in rows),
        "differences": rows,
        "reuse": {key.removeprefix(PREFIX): value for key, value in now.items() if _is_told(key, value)},
        "segment_files": len(StoreFolder(store).listing()),
        "held": held,
        "passed": not wrong and not held and None not in answers,
    }


async def _compared(
    reference: Client, trace: Trace, request: TraceRequest, answer: Answer, answer_tokens: int
) -> dict[str, Any]:
    """An answer against those without faults, of the documents it may have reused and of all."""
    spans = trace.spans(request)
    everything = tuple(range(len(spans)))
    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    for places in reused_sets(spans, DEFAULT_BOUNDARY, answer.segment_tokens):
        expected = await _reference(reference, trace, request, places, answer_tokens)
        best = min(best, (difference(answer, expected), places))
        if best[0] <= BOUND:
            break
    from_all = 0.0
    if best[1] != everything:
        whole = await _reference(reference, trace, request, everything, answer_tokens)
        from_all = difference(answer, whole)
    return {
        **{"difference": best[0], "reused": len(best[1])},
        **{"all_reused": best[1] == everything, "from_all_reused": from_all},
    }


async def _reference(
    reference: Client, trace: Trace, request: TraceRequest, places: tuple[int, ...], answer_tokens: int
) -> Answer:
    """The answer of the server without faults, exactly these documents reused. Raises RuntimeError if it does not."""
    spans = [trace.spans(request)[place] for place in places]
    for _ in range(TRIES):
        wish: Any = {"spans": spans} if spans else "off"
        answer = await reference.answer(trace.prompt(request), wish, answer_tokens)
        if answer.segment_tokens == _clean(spans):
            return answer
    raise RuntimeError(f"the server without faults reused {answer.segment_tokens} of {_clean(spans)} tokens")


def _clean(spans: list[list[int]]) -> int:
    return sum(end - begin - (DEFAULT_BOUNDARY if begin else 0) for begin, end in spans)


def _is_told(key: str, value: float) -> bool:
    return key.startswith(PREFIX) and "_created" not in key and bool(value)
