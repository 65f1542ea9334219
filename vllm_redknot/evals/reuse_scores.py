"""What a case says of reuse: the answer with everything computed beside the answer with stored documents.

Of the right answer's tokens, each given the ones before it: NLL, divergence (the lower bound of `fidelity`), and
whether both expect the same token most.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from vllm_redknot.evals.fidelity import kl_lower_bound
from vllm_redknot.evals.qa_scores import exact_match, f1
from vllm_redknot.evals.requests import Answer
from vllm_redknot.evals.score import Place, Score, cells


def needle_scores(place: Place, passcode: str, dense: Answer, reuse: Answer) -> list[Score]:
    """Whether the continuation states the passcode, and `token_scores`."""
    found = [float(passcode in answer.text) for answer in (dense, reuse)]
    return [Score(place, "found", *found), *token_scores(place, dense, reuse)]


def question_scores(place: Place, accepted: tuple[str, ...], dense: Answer, reuse: Answer) -> list[Score]:
    """F1, exact match, and `token_scores` of the first accepted answer."""
    both = (dense, reuse)
    return [
        Score(place, "f1", *(f1(answer.text, accepted) for answer in both)),
        Score(place, "exact match", *(exact_match(answer.text, accepted) for answer in both)),
        *token_scores(place, dense, reuse),
    ]


def token_scores(place: Place, dense: Answer, reuse: Answer) -> list[Score]:
    """Mean NLL of both, divergence and top-1 agreement over the right answer's tokens."""
    if dense.scored is None or reuse.scored is None:
        raise ValueError(f"{reuse.key} was answered without distributions")
    agreement = float(np.mean(dense.scored.ids[:, 1] == reuse.scored.ids[:, 1]))
    return [
        Score(place, "nll", *(-statistics.fmean(answer.forced_logprobs) for answer in (dense, reuse))),
        Score(place, "kl", None, float(np.mean(kl_lower_bound(dense.scored, reuse.scored)))),
        Score(place, "top-1 agreement", None, agreement),
    ]


def figures(scores: Iterable[Score], seed: int) -> list[dict[str, Any]]:
    """A figure per task, metric and document position, and one of all positions, as docs/cli.md has it."""
    return [
        {
            "task": cell["task"],
            "metric": cell["metric"],
            "position": None if cell["depth"] is None else int(cell["depth"]),
            "n": cell["n"],
            "dense": cell["stock"],
            "reuse": cell["redknot"],
            "difference": cell["difference"],
            "within_noise": cell["within_noise"],
        }
        for cell in cells(scores, seed)
    ]
