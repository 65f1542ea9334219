"""A trace of requests that each draw some documents from a collection: what is asked, not how.

Popularity is Zipf's: the document of rank r is drawn with weight 1 / r. Documents of one request differ, and stand in
the order in which they were drawn, so the popular ones come first more often than not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

Cut = Callable[[int], list[int]]
"""Length -> that many token ids of text that nobody else gets."""


@dataclass(frozen=True)
class TraceRequest:
    """One prompt: documents by their number, then a question of its own."""

    documents: tuple[int, ...]
    question: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """Documents by token ids, and requests in order of arrival."""

    documents: tuple[tuple[int, ...], ...]
    requests: tuple[TraceRequest, ...]

    def prompt(self, request: TraceRequest) -> list[int]:
        """Documents one behind the other, then the question."""
        return [
            token
            for part in (*(self.documents[d] for d in request.documents), request.question)
            for token in part
        ]

    def spans(self, request: TraceRequest) -> list[list[int]]:
        """[begin, end) of each document in the prompt."""
        ends = list(accumulate(len(self.documents[d]) for d in request.documents))
        return [[begin, end] for begin, end in zip([0, *ends], ends, strict=False)]


def draw_trace(
    cut: Cut, num_documents: int, document_tokens: int, num_requests: int, per_request: int, seed: int
) -> Trace:
    """A trace that depends on its arguments alone.

    Args:
        cut: gives text.
        num_documents: of the collection.
        document_tokens: mean length; documents differ by up to a tenth, no two have the same length.
        num_requests: of the trace.
        per_request: documents of a request.
        seed: draws documents, lengths and order.
    """
    generator = random.Random(seed)
    spread = max(num_documents // 2, document_tokens // 10)
    lengths = generator.sample(range(document_tokens - spread, document_tokens + spread + 1), num_documents)
    documents = tuple(tuple(cut(length)) for length in lengths)
    requests = tuple(
        TraceRequest(_zipf(generator, num_documents, per_request), tuple(cut(24)))
        for _ in range(num_requests)
    )
    return Trace(documents, requests)


def _zipf(generator: random.Random, count: int, wanted: int) -> tuple[int, ...]:
    ranks = list(range(count))
    drawn: list[int] = []
    for _ in range(wanted):
        weights = [1 / (rank + 1) for rank in ranks]
        drawn.append(ranks.pop(generator.choices(range(len(ranks)), weights)[0]))
    return tuple(drawn)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
