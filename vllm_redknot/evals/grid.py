"""The needle suite: passcodes hidden at every length x depth, and which of them were found.

A head sees a needle that is nearer than its window, whatever its class. So that a needle tells something of the
classes, depths are fractions of the text that lies farther back than the largest local window, where the length leaves
enough of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from vllm_redknot.evals.cases import NAMES, Case, named_needles, single_needle
from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.requests import Answer, Ids, Request
from vllm_redknot.evals.score import Place, Score

SPARE_TOKENS: Final = 2
"""Generated beyond the passcode: a model may put a word before it."""
NAMED_DEPTHS: Final = (0.1, 0.35, 0.6, 0.85)
LEAST_SHARE: Final = 0.25
"""Depths move beyond the window if at least this share of the text lies there."""
STEP: Final = 0.02


@dataclass(frozen=True)
class NeedleItem:
    """One question and its passcode. `beyond_window`: whether all needles of the text lie beyond all local windows."""

    place: Place
    request: Request
    passcode: str
    beyond_window: bool


def needle_items(
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: Sequence[float],
    seeds: Sequence[int],
    window: int | None,
    limit: int | None,
) -> Iterator[NeedleItem]:
    """Single needles at all depths, and four named ones with each asked for in turn, at every length.

    Args:
        lengths: of the prompts, in tokens.
        window: the largest local window, in tokens; None takes depths of the whole text.
        limit: most cases per task and length; depths take turns.

    Raises:
        ValueError: A length that has no room for the needles, or a depth outside [0, 1].
    """
    begin = opening(tokenizer)
    for length in lengths:
        singles = [(depth, seed) for seed in seeds for depth in depths]
        for depth, seed in singles[:limit]:
            yield _single(tokenizer, begin, length, depth, seed, window)
        named = [(asked, len(NAMES) * seed + asked) for seed in seeds for asked in range(len(NAMES))]
        for asked, seed in named[:limit]:
            yield _named(tokenizer, begin, length, asked, seed, window)


def needle_scores(item: NeedleItem, stock: Answer, redknot: Answer) -> list[Score]:
    """Whether the continuation states the passcode, and the mean NLL of the passcode's tokens."""
    return [
        Score(item.place, "found", *(float(item.passcode in answer.text) for answer in (stock, redknot))),
        Score(
            item.place,
            "nll",
            *(-statistics.fmean(answer.forced_logprobs) for answer in (stock, redknot)),
        ),
    ]


def _single(
    tokenizer: Tokenizer, begin: Ids, length: int, depth: float, seed: int, window: int | None
) -> NeedleItem:
    place, room = Place("needle", length, depth), length - len(begin)
    for share in _shares(length, window):
        case = single_needle(tokenizer, room, depth * share, seed)
        if window is None or case.gap > window:
            return _item(tokenizer, begin, case, place, seed, window is not None)
    return _item(tokenizer, begin, single_needle(tokenizer, room, depth, seed), place, seed, False)


def _named(
    tokenizer: Tokenizer, begin: Ids, length: int, asked: int, seed: int, window: int | None
) -> NeedleItem:
    place, room = Place("named", length, NAMED_DEPTHS[asked]), length - len(begin)
    for share in _shares(length, window):
        depths = [depth * share for depth in NAMED_DEPTHS]
        case = named_needles(tokenizer, room, depths, asked, seed)
        # The last needle is the nearest: if it lies beyond the window, so do all.
        nearest = named_needles(tokenizer, room, depths, len(NAMES) - 1, seed)
        if window is None or min(nearest.gap, case.gap) > window:
            return _item(tokenizer, begin, case, place, seed, window is not None)
    case = named_needles(tokenizer, room, NAMED_DEPTHS, asked, seed)
    return _item(tokenizer, begin, case, place, seed, False)


def _shares(length: int, window: int | None) -> Iterator[float]:
    """What share of the text depths are fractions of, from all of it beyond the window down to too little."""
    if window is None:
        yield 1.0
        return
    share = 1 - window / length
    while share >= LEAST_SHARE:
        yield share
        share -= STEP


def _item(
    tokenizer: Tokenizer, begin: Ids, case: Case, place: Place, seed: int, beyond_window: bool
) -> NeedleItem:
    passcode: str = tokenizer.decode(list(case.answer)).strip()
    request = Request(
        key=f"{place.task}/{place.length}/{place.depth}/{seed}",
        prompt=(*begin, *case.prompt),
        max_tokens=len(case.answer) + SPARE_TOKENS,
        forced=case.answer,
    )
    return NeedleItem(place, request, passcode, beyond_window)
