"""The suites by name: what each asks, and what its answers score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple

from tokenizers import Tokenizer

from vllm_redknot.evals.fidelity import essay_items, essay_scores
from vllm_redknot.evals.grid import needle_items, needle_scores
from vllm_redknot.evals.qa_items import qa_items, qa_scores
from vllm_redknot.evals.requests import Answer, Request
from vllm_redknot.evals.score import Score

Suite = Literal["fidelity", "needle", "qa"]
SUITES: Final[tuple[Suite, ...]] = ("fidelity", "needle", "qa")


@dataclass(frozen=True)
class Choices:
    """What is asked.

    Attributes:
        lengths: of prompts, in tokens.
        depths: of single needles, fractions of the text that is beyond `window`.
        seeds: texts per length and depth.
        window: the largest local window, which needles are kept behind; None keeps them nowhere.
        limit: most cases per task and length.
    """

    suites: tuple[Suite, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    seeds: int
    seed: int
    window: int | None
    limit: int | None


class Case(NamedTuple):
    """A request, its suite, and what becomes of its two answers (stock's, REDKNOT's)."""

    suite: Suite
    request: Request
    score: Callable[[Answer, Answer], list[Score]]


class Cases(NamedTuple):
    """All that is asked. `beyond_window`: per length, whether every needle lies beyond the window."""

    cases: list[Case]
    beyond_window: dict[int, bool]


def build_cases(tokenizer: Tokenizer, choices: Choices) -> Cases:
    """The cases of the chosen suites; equal choices give equal ones.

    Raises:
        ValueError: Something does not fit into a length, or there are too few texts.
        TextsMissingError: The texts are not installed.
    """
    cases: list[Case] = []
    beyond: dict[int, bool] = {}
    if "fidelity" in choices.suites:
        for essay in essay_items(tokenizer, choices.lengths, choices.seed, choices.limit):
            cases.append(Case("fidelity", essay.request, partial(essay_scores, essay)))
    if "needle" in choices.suites:
        seeds = range(choices.seed * choices.seeds, (choices.seed + 1) * choices.seeds)
        for needle in needle_items(
            tokenizer, choices.lengths, choices.depths, seeds, choices.window, choices.limit
        ):
            cases.append(Case("needle", needle.request, partial(needle_scores, needle)))
            length = needle.place.length
            beyond[length] = beyond.get(length, True) and needle.beyond_window
    if "qa" in choices.suites:
        for question in qa_items(tokenizer, choices.lengths, choices.seed, choices.limit):
            cases.append(Case("qa", question.request, partial(qa_scores, question)))
    return Cases(cases, beyond)


def suite_scores(
    cases: Sequence[Case], stock: Mapping[str, Answer], redknot: Mapping[str, Answer]
) -> dict[Suite, list[Score]]:
    """The scores of answered cases by suite, in order."""
    found: dict[Suite, list[Score]] = {}
    for case in cases:
        key = case.request.key
        found.setdefault(case.suite, []).extend(case.score(stock[key], redknot[key]))
    return found
