"""The QA suite: questions after paragraphs, of which one or two tell the answer and the others fill the length.

Three examples show what an answer looks like, as a plain text to go on with: SmolLM2-135M-Instruct reached F1 0.25 on
SQuAD at 1,000 tokens this way (20 questions), 0.02 without examples, and 0.04 with its chat template.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tokenizers import Tokenizer

from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.qa import DATA_SETS, DataSet, Question, Questions, read_questions
from vllm_redknot.evals.qa_scores import exact_match, f1
from vllm_redknot.evals.requests import Answer, Ids, Request
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


class Passage(NamedTuple):
    """Token ids of a prompt in its parts: what models expect first, the paragraphs in order, examples and question."""

    begin: Ids
    texts: tuple[Ids, ...]
    ask: Ids


def qa_items(tokenizer: Tokenizer, lengths: Sequence[int], seed: int, limit: int | None) -> Iterator[QaItem]:
    """Questions of each data set, drawn by the seed: the same ones at every length.

    Raises:
        ValueError: A length too short for any question.
        TextsMissingError: The package with the data is not installed.
    """
    for data_set in DATA_SETS:
        # Decided at the shortest length, so that lengths are compared on the same questions.
        chosen = choose_questions(tokenizer, data_set, min(lengths), seed, limit or QUESTIONS)
        for length in lengths:
            for index in chosen:
                yield _item(tokenizer, data_set, index, length, seed)


def choose_questions(
    tokenizer: Tokenizer, data_set: DataSet, length: int, seed: int, count: int
) -> list[int]:
    """Up to `count` questions, drawn by the seed, that fit into `length` tokens with their paragraphs.

    Raises:
        ValueError: None does.
        TextsMissingError: The package with the data is not installed.
    """
    known = read_questions(data_set)
    order = random.Random(f"{data_set} {seed}").sample(range(len(known.questions)), len(known.questions))
    fitting = (
        index for index in order if passage(tokenizer, known, known.questions[index], length, "") is not None
    )
    chosen = [index for index, _ in zip(fitting, range(count), strict=False)]
    if not chosen:
        raise ValueError(f"length is {length}: no question of {data_set} fits with its paragraphs")
    return chosen


def qa_scores(item: QaItem, stock: Answer, redknot: Answer) -> list[Score]:
    """F1, exact match, and the mean NLL of the first accepted answer's tokens."""
    both = (stock, redknot)
    return [
        Score(item.place, "f1", *(f1(answer.text, item.accepted) for answer in both)),
        Score(item.place, "exact match", *(exact_match(answer.text, item.accepted) for answer in both)),
        Score(item.place, "nll", *(-statistics.fmean(answer.forced_logprobs) for answer in both)),
    ]


def _item(tokenizer: Tokenizer, data_set: DataSet, index: int, length: int, seed: int) -> QaItem:
    known = read_questions(data_set)
    question = known.questions[index]
    found = passage(tokenizer, known, question, length, f"{data_set} {seed} {index}")
    assert found is not None
    request = Request(
        key=f"{data_set}/{length}/{index}",
        prompt=(*found.begin, *(token for text in found.texts for token in text), *found.ask),
        max_tokens=MAX_TOKENS,
        stop=("\n",),
        forced=first_accepted(tokenizer, question),
    )
    return QaItem(Place(data_set, length), request, question.accepted)


def first_accepted(tokenizer: Tokenizer, question: Question) -> Ids:
    """The first accepted answer as it follows the question."""
    right: list[int] = tokenizer.encode(f" {question.accepted[0]}", add_special_tokens=False).ids
    return tuple(right[:MAX_TOKENS])


def passage(
    tokenizer: Tokenizer, known: Questions, question: Question, length: int, draw: str
) -> Passage | None:
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
    return Passage(begin, tuple(map(tuple, texts)), tuple(ask))
