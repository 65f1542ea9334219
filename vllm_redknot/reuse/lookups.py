"""Lookups of the worker: prompts are searched and segments leased in threads, beside the forward pass."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from vllm.logger import init_logger

from vllm_redknot.reuse.finder import Match
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.lease import Lease
from vllm_redknot.reuse.messages import Found, Lookup
from vllm_redknot.reuse.plan import Run, plan_spans
from vllm_redknot.reuse.policy import repair_policy
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.segment import Segment
from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.texts import TextTokens, locate

logger = init_logger("vllm.redknot")

THREADS: Final = 2
DEADLINE: Final = 4.0
"""Seconds a segment may take to come from disk."""
NO_TOKENIZER: Final = "texts cannot be found, as the engine has no tokenizer: mark documents by spans"


class Segments(Protocol):
    """What is asked of the segment store."""

    def find(self, tokens: Sequence[int], spans: Iterable[Span] | None = None) -> tuple[Match, ...]:
        """Stored runs in a prompt."""

    def acquire(self, content: str, deadline_s: float | None = None) -> Lease | None:
        """A lease, or None."""

    def __contains__(self, content: str) -> bool:
        """Whether exactly these tokens are stored."""


class Lookups:
    """Answers lookups, and keeps the leases of each until its ticket is released. Called from one thread.

    Args:
        store: of segments.
        layout: of what is stored.
        min_tokens: that a marked document lacks at least, if it is missing.
        tokens_of: token ids of a text alone, called from several threads; None where there is no tokenizer.
    """

    def __init__(
        self,
        store: Segments,
        layout: SegmentFormat,
        min_tokens: int,
        tokens_of: Callable[[str], TextTokens] | None = None,
    ) -> None:
        self._store = store
        self._format = layout
        self._min_tokens = min_tokens
        self._tokens_of = tokens_of
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="redknot-reuse")
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._leases: dict[int, dict[str, Lease]] = {}
        self._answers: list[Found] = []

    def ask(self, lookup: Lookup) -> None:
        """Begin a lookup; `answers` has its result some time later."""
        with self._lock:
            self._open.add(lookup.ticket)
        self._threads.submit(self._run, lookup)

    def answers(self) -> list[Found]:
        """Lookups that have ended since the last call. Those whose ticket was released are left out."""
        with self._lock:
            answers, self._answers = self._answers, []
        return answers

    def segment(self, ticket: int, content: str) -> Segment:
        """A leased segment."""
        return self._leases[ticket][content].segment

    def release(self, ticket: int) -> None:
        """End the leases of a lookup, now or when it ends."""
        with self._lock:
            self._open.discard(ticket)
            leases = self._leases.pop(ticket, {})
        for lease in leases.values():
            lease.release()

    def close(self) -> None:
        """Wait for lookups under way, and end all leases."""
        self._threads.shutdown(cancel_futures=True)
        for ticket in list(self._leases):
            self.release(ticket)

    def _run(self, lookup: Lookup) -> None:
        leases: dict[str, Lease] = {}
        try:
            answer = self._answer(lookup, leases)
        except Exception:
            logger.exception("REDKNOT: a lookup of stored KV failed; its prompt is computed")
            answer = Found(lookup.ticket, (), (), 1)
        used = {span.content for span in answer.spans}
        with self._lock:
            wanted = lookup.ticket in self._open
            if wanted:
                self._leases[lookup.ticket] = {name: leases[name] for name in used}
                self._answers.append(answer)
        for name, lease in leases.items():
            if not wanted or name not in used:
                lease.release()

    def _answer(self, lookup: Lookup, leases: dict[str, Lease]) -> Found:
        if not lookup.texts:
            return self._search(lookup, lookup.spans or None, leases)
        if self._tokens_of is None:
            return Found(lookup.ticket, (), (), 0, NO_TOKENIZER)
        located = locate(lookup.tokens, lookup.texts, self._tokens_of)
        found = self._search(lookup, located.spans, leases)
        return dataclasses.replace(found, problem=_not_there(located.missing))

    def _search(self, lookup: Lookup, marked: tuple[Span, ...] | None, leases: dict[str, Lease]) -> Found:
        """`marked`: where documents are; None where the request marks none, and the whole prompt is searched."""
        documents = marked or ()
        if not lookup.reuse:
            return Found(lookup.ticket, (), tuple(s for s in documents if not self._holds(lookup, s)), 0)
        faults, runs = 0, []
        for match in self._store.find(lookup.tokens.tolist(), marked):
            if match.content not in leases:
                lease = self._store.acquire(match.content, DEADLINE)
                if lease is None:
                    faults += 1
                    continue
                leases[match.content] = lease
            length = leases[match.content].segment.num_tokens
            runs.append(Run(match.content, length, match.segment_begin, match.begin, match.num_tokens))
        spans = plan_spans(runs, self._format, repair_policy(lookup.boundary), len(lookup.tokens))
        missing = tuple(span for span in documents if self._is_missing(span, runs))
        return Found(lookup.ticket, spans, missing, faults)

    def _holds(self, lookup: Lookup, span: Span) -> bool:
        return content_id(lookup.tokens[span.begin : span.end].tolist()) in self._store

    def _is_missing(self, span: Span, runs: Iterable[Run]) -> bool:
        """Whether much of a marked document is not stored: a few tokens differ where it was joined to others."""
        stored = sum(
            max(0, min(span.end, run.begin + run.length) - max(span.begin, run.begin)) for run in runs
        )
        return span.end - span.begin - stored >= self._min_tokens


def _not_there(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    names = ", ".join(f"texts[{number}]" for number in numbers)
    return f"not found in the prompt, and left out: {names}"
