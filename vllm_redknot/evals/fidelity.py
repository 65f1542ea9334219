"""The fidelity suite: what each engine expects next in held-out essays.

vLLM gives the most likely tokens of a prompt's positions, not whole distributions. NLL and the most likely token are
exact in that. The divergence is bounded from below: over the tokens that both lists have, and one outcome that stands
for all others; merging outcomes never raises a Kullback-Leibler divergence (Cover and Thomas 2006, theorem 2.7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.requests import Answer, Distributions, Request
from vllm_redknot.evals.score import Place, Score
from vllm_redknot.evals.texts import essay_sentences

POSITIONS: Final = 512
"""Predictions scored per length: the last ones before it, so that each has all that context."""
TOP: Final = 128
"""Most likely tokens compared."""
TEXTS: Final = 8
SMALLEST: Final = 1e-9
"""Keeps the rest's probability positive where rounding takes it all."""
KL_NOTE: Final = (
    f"lower bound of KL(stock || redknot) in nats: over the tokens among the {TOP} most likely of both engines, all"
    " others being one outcome"
)


@dataclass(frozen=True)
class EssayItem:
    """One text, scored before each of `lengths`; `spans` of the request has one entry each."""

    lengths: tuple[int, ...]
    request: Request


def essay_items(
    tokenizer: Tokenizer, lengths: Sequence[int], seed: int, limit: int | None
) -> list[EssayItem]:
    """Texts of the longest length from the held-out essays, `TEXTS` unless `limit` says otherwise; none overlap.

    A decoder's expectations at a position depend on what is before it alone, so one text serves every length. A length
    nearer than `POSITIONS` to a shorter one has as many positions as lie between.

    Raises:
        ValueError: The essays are too short for so many texts.
    """
    rising = tuple(sorted(set(lengths)))
    spans = tuple((max(shorter, length - POSITIONS, 1), length) for shorter, length in pairwise((0, *rising)))
    ids = tokenizer.encode(" ".join(essay_sentences("held-out")), add_special_tokens=False).ids
    begin = opening(tokenizer)
    count, longest = limit or TEXTS, rising[-1] - len(begin)
    apart = len(ids) // count
    if apart < longest:
        raise ValueError(
            f"the held-out essays have {len(ids)} tokens: {count} texts of {longest} do not fit, give at most"
            f" {len(ids) // longest} with --limit"
        )
    # Evenly spread, all moved by the seed.
    shift = int(np.random.default_rng(seed).integers(apart - longest + 1))
    starts = [index * apart + shift for index in range(count)]
    return [
        EssayItem(
            rising,
            Request(f"essays/{start}", (*begin, *ids[start : start + longest]), spans=spans, top=TOP),
        )
        for start in starts
    ]


def essay_scores(item: EssayItem, stock: Answer, redknot: Answer) -> list[Score]:
    """NLL of both, KL and top-1 agreement, each a mean over the positions of a length."""
    if stock.scored is None or redknot.scored is None:
        raise ValueError(f"{item.request.key} was answered without distributions")
    scores = []
    row = 0
    for length, (start, end) in zip(item.lengths, item.request.spans, strict=True):
        dense, ours = (
            Distributions(scored.ids[row : row + end - start], scored.logprobs[row : row + end - start])
            for scored in (stock.scored, redknot.scored)
        )
        row += end - start
        place = Place("essays", length)
        agreement = float(np.mean(dense.ids[:, 1] == ours.ids[:, 1]))
        scores += [
            Score(place, "nll", nll(dense), nll(ours)),
            Score(place, "kl", None, float(np.mean(kl_lower_bound(dense, ours)))),
            Score(place, "top-1 agreement", None, agreement),
        ]
    return scores


def nll(found: Distributions) -> float:
    """Mean negative log likelihood of the text, in nats per token."""
    return -float(np.mean(found.logprobs[:, 0], dtype=np.float64))


def kl_lower_bound(dense: Distributions, ours: Distributions) -> NDArray[np.float64]:
    """At most KL(dense || ours) of each position, float64 [N], in nats."""
    return np.array(
        [_row_bound(*row) for row in zip(dense.ids, dense.logprobs, ours.ids, ours.logprobs, strict=True)]
    )


def _row_bound(
    dense_ids: NDArray[np.int32],
    dense_logprobs: NDArray[np.float32],
    our_ids: NDArray[np.int32],
    our_logprobs: NDArray[np.float32],
) -> float:
    # The first column is among the others wherever the text's token is a likely one: each counts once.
    _, left, right = np.intersect1d(dense_ids, our_ids, return_indices=True)
    log_p, log_q = dense_logprobs[left].astype(np.float64), our_logprobs[right].astype(np.float64)
    p = np.exp(log_p)
    rest_p, rest_q = (max(1 - float(np.exp(logs).sum()), SMALLEST) for logs in (log_p, log_q))
    return max(float(p @ (log_p - log_q)) + rest_p * float(np.log(rest_p / rest_q)), 0.0)
