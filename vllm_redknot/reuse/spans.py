"""Explicit spans of a prompt, as a request marks them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from vllm_redknot.reuse.faults import ReuseError

MAX_SPANS: Final = 1024


class Span(NamedTuple):
    """Token positions [begin, end) of a prompt."""

    begin: int
    end: int


def parse_spans(value: Any, num_tokens: int) -> tuple[Span, ...]:
    """Spans from a request's JSON: a list of [begin, end] pairs of a prompt of `num_tokens`, in any order.

    Returns them in order. Raises ReuseError, naming the span, where one is not within the prompt, is empty, or
    overlaps another.
    """
    if not isinstance(value, list | tuple) or len(value) > MAX_SPANS:
        raise ReuseError(f"spans: give a list of at most {MAX_SPANS} [begin, end) pairs of token positions")
    spans = sorted(_span(pair, num_tokens) for pair in value)
    for before, after in itertools.pairwise(spans):
        if after.begin < before.end:
            raise ReuseError(f"spans {list(before)} and {list(after)} overlap: give disjoint ones")
    return tuple(spans)


def _span(pair: Any, num_tokens: int) -> Span:
    numbers = list(pair) if isinstance(pair, Iterable) and not isinstance(pair, str | bytes | dict) else []
    if len(numbers) != 2 or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
        raise ReuseError(f"span {pair!r:.60}: give two integers, [begin, end)")
    span = Span(*numbers)
    if not 0 <= span.begin < span.end <= num_tokens:
        raise ReuseError(f"span {list(span)}: give 0 <= begin < end <= {num_tokens}, the prompt's tokens")
    return span
