"""Engines with KV reuse, and short ways to ask them about documents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vllm import SamplingParams

from tests.engine.harness import Completion, Engine, _completion, engine

DOCUMENT_CHUNK = 512


class Answer(NamedTuple):
    """One continuation and what its response says about reuse."""

    completion: Completion
    details: dict[str, Any]

    @property
    def reused(self) -> int:
        """Tokens that took their KV from a segment."""
        return int(self.details["segment_tokens"])


class Question(NamedTuple):
    """A prompt and its request's wishes."""

    prompt: list[int]
    control: Any


@contextmanager
def reusing(
    model: Path | str,
    store: Path,
    heads: str = "all-global",
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> Iterator[Engine]:
    """An fp32 engine with a segment store, and a boundary for short documents."""
    redknot = {"heads": heads, "reuse": "force", "store": str(store), "boundary": 16, **(settings or {})}
    with engine(model, redknot, **{"dtype": "float32", **arguments}) as started:
        yield started


def params(control: Any, max_tokens: int = 8, **sampling: Any) -> SamplingParams:
    """Greedy, with these wishes."""
    return SamplingParams(
        **{
            "temperature": 0.0,
            "max_tokens": max_tokens,
            "logprobs": 5,
            "ignore_eos": True,
            "detokenize": False,
            "extra_args": {"redknot_reuse": control},
            **sampling,
        }
    )


def ask_all(server: Engine, questions: Sequence[Question], max_tokens: int = 8, **extra: Any) -> list[Answer]:
    """Answers to questions handed to the engine at once, with these further extra arguments."""
    outputs = server.llm.generate(
        [{"prompt_token_ids": list(question.prompt)} for question in questions],
        [params(q.control, max_tokens, extra_args={"redknot_reuse": q.control, **extra}) for q in questions],
        use_tqdm=False,
    )
    return [Answer(_completion(output), output.kv_transfer_params["redknot_reuse"]) for output in outputs]


def ask(server: Engine, prompt: Sequence[int], control: Any, max_tokens: int = 8, **extra: Any) -> Answer:
    """The answer to one question."""
    return ask_all(server, [Question(list(prompt), control)], max_tokens, **extra)[0]


def store_alone(server: Engine, *documents: Sequence[int]) -> None:
    """Have documents encoded alone and stored."""
    for document in documents:
        ask(server, document, {"spans": [[0, len(document)]]}, max_tokens=1)
    assert server.llm.reset_prefix_cache()


def marks(*documents: Sequence[int], begin: int = 0) -> list[list[int]]:
    """Spans of documents that follow each other in a prompt."""
    spans = []
    for document in documents:
        spans.append([begin, begin + len(document)])
        begin += len(document)
    return spans


def connector(server: Engine) -> Any:
    """The scheduler's connector."""
    return server.scheduler.connector


def worker() -> Any:
    """The worker's side, in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def leases(reuse: Any) -> int:
    """Segments that a worker has in use."""
    return len(reuse.store._catalog.memory.leased)


def assert_nothing_held(server: Engine) -> None:
    """No request is tracked, no lease is out, no document half read, every page free."""
    # Releases of the last requests travel with the next step.
    ask(server, [1, 2, 3], "off", max_tokens=1)
    assert server.llm.reset_prefix_cache()
    pool = server.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert not connector(server).tracker._requests
    assert not connector(server).tracker._open
    # Segments that are being written, or just found for a request that is gone, are given back in threads.
    assert worker().store.flush()
    until = time.monotonic() + 20
    while leases(worker()) and time.monotonic() < until:
        time.sleep(0.01)
    assert leases(worker()) == 0
    assert not worker()._readers
