"""Whether an answer is the one it must be: what a policy makes of a request and the documents it reused.

A fault may keep a document's KV from being reused: then the document is computed, and the answer differs from the one
without faults by as much as the policy's approximation does. But for one request and one set of reused documents the
policy leaves no choice. So an answer under faults must equal the one that a server without faults gives to the same
request with exactly these documents marked. Only the order of summation differs between two batches: in fp32 that
moves logprobs by 1e-5 or so, and `BOUND` is far below what a document more or less makes of them (0.01 and more).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

BOUND: Final = 1e-3
"""Largest difference of logprobs in fp32."""
MIN_CLEAN_TOKENS: Final = 16
"""Less of a document behind its boundary is computed, not reused."""


@dataclass(frozen=True)
class Answer:
    """A greedy continuation.

    Attributes:
        tokens: ids.
        logprobs: of the tokens.
        likeliest: per token, the likeliest ids there and their logprobs.
        segment_tokens: prompt tokens whose KV came from the store.
        prefix_tokens: prompt tokens whose KV came from vLLM's prefix cache.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    likeliest: tuple[Mapping[int, float], ...]
    segment_tokens: int
    prefix_tokens: int


def difference(got: Answer, expected: Answer) -> float:
    """Largest difference of logprobs, up to the first token in which the two differ.

    There, both tokens must be as likely in one as in the other: a tie that rounding has decided. What follows has
    different histories. Infinite where a token is not among the likeliest of the other.
    """
    if len(got.tokens) != len(expected.tokens):
        return math.inf
    largest = 0.0
    for at, (left, right) in enumerate(zip(got.tokens, expected.tokens, strict=True)):
        if left == right:
            largest = max(largest, abs(got.logprobs[at] - expected.logprobs[at]))
            continue
        there, here = expected.likeliest[at].get(left, -math.inf), got.likeliest[at].get(right, -math.inf)
        # Greedy: each is its side's maximum, so equal logprobs are a tie on both sides.
        return max(largest, abs(got.logprobs[at] - there), abs(here - expected.logprobs[at]))
    return largest


def reused_sets(
    spans: Sequence[Sequence[int]], boundary: int, segment_tokens: int
) -> Iterator[tuple[int, ...]]:
    """Which of a prompt's documents can have been reused, by their place, given how many tokens were; likeliest first.

    Args:
        spans: [begin, end) of each document.
        boundary: tokens recomputed at the start of a document that does not begin the prompt.
        segment_tokens: tokens that were reused.
    """
    clean = [end - begin - (boundary if begin else 0) for begin, end in spans]
    usable = [place for place, tokens in enumerate(clean) if tokens >= MIN_CLEAN_TOKENS]
    for count in range(len(usable), -1, -1):
        for places in combinations(usable, count):
            if sum(clean[place] for place in places) == segment_tokens:
                yield places
