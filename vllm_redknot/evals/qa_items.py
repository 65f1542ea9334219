"""The QA suite: questions after paragraphs, of which one or two tell the answer and the others fill the length.

Three examples show what an answer looks like, as a plain text to go on with: SmolLM2-135M-Instruct reached F1 0.25 on
SQuAD at 1,000 tokens this way (20 questions), 0.02 without examples, and 0.04 with its chat template.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.qa import DATA_SETS, DataSet, Question, Questions, read_questions
from vllm_redknot.evals.qa_scores import exact_match, f1
from vllm_redknot.evals.requests import Answer, Request
from vllm_redknot.evals.score import Place, Score

QUESTIONS: Final = 50
MAX_TOKENS: Final = 32
EXAMPLES: Final = """Answer each question with a few words from the text above.

Question: What is the capital of France?
Answer: Paris

Question: Are cats and dogs both animals?
Answer: yes

Question: Who wrote Hamlet?
Answer: William Shakespeare

"""
FULL: Final = 5
"""So many paragraphs in a row that do not fit, and the text counts as full."""


@dataclass(frozen=True)
class QaItem:
    """One question and its accepted answers."""

    place: Place
    request: Request
    accepted: tuple[str, ...]


def qa_items(tokenizer: Tokenizer, lengths: Sequence[int], seed: int, limit: int | None) -> Iterator[QaItem]:
    """Questions of each data set, drawn by the seed: the same ones at every length.

    Raises:
        ValueError: A length too short for any question.
        TextsMissingError: The package with the data is not installed.
    """
    for data_set in DATA_SETS:
        known = read_questions(data_set)
        order = random.Random(f"{data_set} {seed}").sample(range(len(known.questions)), len(known.questions))
        shortest = min(lengths)
        # Decided at the shortest length, so that lengths are compared on the same questions.
        fitting = (
            index
            for index in order
            if _prompt(tokenizer, known, known.questions[index], shortest, "") is not None
        )
        chosen = [index for index, _ in zip(fitting, range(limit or QUESTIONS), strict=False)]
        if not chosen:
            raise ValueError(f"length is {shortest}: no question of {data_set} fits with its paragraphs")
        for length in lengths:
            for index in chosen:
                yield _item(tokenizer, known, data_set, index, length, seed)


def qa_scores(item: QaItem, stock: Answer, redknot: Answer) -> list[Score]:
    """F1, exact match, and the mean NLL of the first accepted answer's tokens."""
    both = (stock, redknot)
    return [
        Score(item.place, "f1", *(f1(answer.text, item.accepted) for answer in both)),
        Score(item.place, "exact match", *(exact_match(answer.text, item.accepted) for answer in both)),
        Score(item.place, "nll", *(-statistics.fmean(answer.forced_logprobs) for answer in both)),
    ]


def _item(
    tokenizer: Tokenizer, known: Questions, data_set: DataSet, index: int, length: int, seed: int
) -> QaItem:
    question = known.questions[index]
    prompt = _prompt(tokenizer, known, question, length, f"{data_set} {seed} {index}")
    assert prompt is not None
    right = tokenizer.encode(f" {question.accepted[0]}", add_special_tokens=False).ids
    request = Request(
        key=f"{data_set}/{length}/{index}",
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        stop=("\n",),
        forced=tuple(right[:MAX_TOKENS]),
    )
    return QaItem(Place(data_set, length), request, question.accepted)


def _prompt(
    tokenizer: Tokenizer, known: Questions, question: Question, length: int, draw: str
) -> tuple[int, ...] | None:
    """At most `length` tokens: the telling paragraphs among random others, in random order. None if those do not fit.

    Without `draw` the answer is only whether they fit.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    ask = encode(f"{EXAMPLES}Question: {question.text}\nAnswer:")
    texts = [encode(f"{paragraph}\n\n") for paragraph in question.paragraphs]
    begin = opening(tokenizer)
    room = length - len(begin) - len(ask) - sum(map(len, texts))
    if room < 0:
        return None
    rng = random.Random(draw)
    used = set(question.paragraphs)
    refused = 0
    while draw and refused < FULL:
        other = rng.choice(known.paragraphs)
        ids = encode(f"{other}\n\n")
        if other in used or len(ids) > room:
            refused += 1
            continue
        used.add(other)
        texts.append(ids)
        room -= len(ids)
        refused = 0
    rng.shuffle(texts)
    return (*begin, *(token for text in texts for token in text), *ask)
