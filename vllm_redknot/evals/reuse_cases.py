"""Held-out prompts made of documents: one or all hide a passcode, or one or two tell the answer to a question.

Documents are stored alone, and stand in a prompt in another order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer

from vllm_redknot.evals.cases import ASK_SINGLE, NAMES
from vllm_redknot.evals.fidelity import TOP
from vllm_redknot.evals.grid import SPARE_TOKENS
from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.qa import DATA_SETS, DataSet, read_questions
from vllm_redknot.evals.qa_items import MAX_TOKENS, choose_questions, first_accepted, passage
from vllm_redknot.evals.requests import Answer, Ids
from vllm_redknot.evals.reuse_requests import Range, ReuseRequest, reusable, spared
from vllm_redknot.evals.reuse_scores import needle_scores, question_scores
from vllm_redknot.evals.score import Place, Score, Task
from vllm_redknot.evals.texts import essay_sentences
from vllm_redknot.reuse.finder import DEFAULT_MIN_TOKENS
from vllm_redknot.reuse.policy import BLEND

SHORTEST: Final = DEFAULT_MIN_TOKENS + 1
"""Tokens of the shortest paragraph that is stored: reuse looks for no shorter ones."""
BREAK: Final = "\n\n"


@dataclass(frozen=True)
class ReuseChoices:
    """What is asked.

    Attributes:
        boundary: tokens recomputed per moved document.
        documents: of a prompt with passcodes; at least 2.
        document_tokens: of each of them.
        texts: prompts with passcodes: for each, the document that tells stands at every place in turn.
        questions: of each data set.
        length: most tokens of a prompt with a question.
        seed: draws everything.
        share: of moved documents, what blend recomputes; None for the boundary.
    """

    boundary: int
    documents: int
    document_tokens: int
    texts: int
    questions: int
    length: int
    seed: int
    share: float | None = None

    @property
    def wish(self) -> dict[str, Any]:
        """What requests say of repair."""
        return {"boundary": self.boundary} if self.share is None else {"policy": BLEND, "share": self.share}

    def reused(self, documents: Sequence[Range]) -> int:
        """Tokens of stored documents whose KV should come from the store."""
        return reusable(documents, self.boundary) if self.share is None else spared(documents, self.share)


class ReuseCase(NamedTuple):
    """One prompt, asked with all of it computed and with its documents from the store."""

    dense: ReuseRequest
    reuse: ReuseRequest
    score: Callable[[Answer, Answer], list[Score]]


def reuse_cases(tokenizer: Tokenizer, choices: ReuseChoices) -> Iterator[ReuseCase]:
    """All cases; equal choices give equal ones.

    Raises:
        ValueError: A length or a document too short for what it must hold.
        TextsMissingError: The texts are not installed.
    """
    essays = _Essays(tokenizer, choices.seed)
    for build in (_single, _named):
        for text in range(choices.seed * choices.texts, (choices.seed + 1) * choices.texts):
            yield from build(tokenizer, essays, choices, text)
    for data_set in DATA_SETS:
        for index in choose_questions(tokenizer, data_set, choices.length, choices.seed, choices.questions):
            yield _question(tokenizer, choices, data_set, index)


def _single(tokenizer: Tokenizer, essays: _Essays, choices: ReuseChoices, text: int) -> Iterator[ReuseCase]:
    """One document states a passcode, twice; it stands at every place in turn, the others in any order."""
    rng = random.Random(f"reuse needle {text}")
    code = _code(rng)
    planted = f"The secret passcode is {code}. Remember it. {code} is the secret passcode."
    telling = essays.document(choices.document_tokens, planted, rng)
    others = [essays.document(choices.document_tokens, "", rng) for _ in range(choices.documents - 1)]
    for position in range(choices.documents):
        rng.shuffle(others)
        order = [*others[:position], telling, *others[position:]]
        yield _asked(tokenizer, choices, "needle", text, order, position, ASK_SINGLE, code)


def _named(tokenizer: Tokenizer, essays: _Essays, choices: ReuseChoices, text: int) -> Iterator[ReuseCase]:
    """The first documents state a passcode of a name each; each name is asked for in turn, in another order."""
    rng = random.Random(f"reuse named {text}")
    names = NAMES[: choices.documents]
    codes = [_code(rng) for _ in names]
    planted = [
        f"The {name} passcode is {code}. Remember it." for name, code in zip(names, codes, strict=True)
    ]
    planted += [""] * (choices.documents - len(names))
    documents = [essays.document(choices.document_tokens, told, rng) for told in planted]
    for asked, name in enumerate(names):
        position = (asked + text) % choices.documents
        others = [document for index, document in enumerate(documents) if index != asked]
        rng.shuffle(others)
        order = [*others[:position], documents[asked], *others[position:]]
        ask = f"The {name} passcode is"
        yield _asked(tokenizer, choices, "named", text, order, position, ask, codes[asked])


def _asked(
    tokenizer: Tokenizer,
    choices: ReuseChoices,
    task: Task,
    text: int,
    order: Sequence[Ids],
    position: int,
    ask: str,
    code: str,
) -> ReuseCase:
    answer = _encode(tokenizer, f" {code}")
    dense, reuse = _requests(
        f"{task}/{text}/{position}",
        (opening(tokenizer), order, _encode(tokenizer, ask)),
        answer,
        len(answer) + SPARE_TOKENS,
        (),
        choices,
    )
    place = Place(task, choices.documents * choices.document_tokens, float(position))
    return ReuseCase(dense, reuse, partial(needle_scores, place, code))


def _question(tokenizer: Tokenizer, choices: ReuseChoices, data_set: DataSet, index: int) -> ReuseCase:
    known = read_questions(data_set)
    question = known.questions[index]
    found = passage(tokenizer, known, question, choices.length, f"reuse {data_set} {choices.seed} {index}")
    assert found is not None
    dense, reuse = _requests(
        f"{data_set}/{index}",
        found,
        first_accepted(tokenizer, question),
        MAX_TOKENS,
        ("\n",),
        choices,
    )
    place = Place(data_set, choices.length)
    return ReuseCase(dense, reuse, partial(question_scores, place, question.accepted))


def _requests(
    key: str,
    parts: tuple[Ids, Sequence[Ids], Ids],
    forced: Ids,
    max_tokens: int,
    stop: tuple[str, ...],
    choices: ReuseChoices,
) -> tuple[ReuseRequest, ReuseRequest]:
    """The same prompt twice: computed, and with its documents from the store."""
    begin, documents, ask = parts
    prompt, spans = list(begin), list[Range]()
    for document in documents:
        if len(document) >= SHORTEST:
            spans.append((len(prompt), len(prompt) + len(document)))
        prompt += document
    prompt += ask
    whole = ReuseRequest(f"dense/{key}", tuple(prompt), max_tokens, stop, forced, top=TOP)
    stored = ReuseRequest(
        *(f"reuse/{key}", tuple(prompt), max_tokens, stop, forced),
        top=TOP,
        documents=tuple(spans),
        policy=choices.wish,
        reused=choices.reused(spans),
    )
    return whole, stored


class _Essays:
    """Documents from the held-out essays. No stretch is in two of them: reuse would find one in the other."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._sentences = essay_sentences("held-out")
        self._at = random.Random(f"reuse essays {seed}").randrange(len(self._sentences))
        self._left = len(self._sentences)

    def document(self, length: int, planted: str, rng: random.Random) -> Ids:
        """`length` tokens of the essays, the planted sentences between two of theirs. Raises ValueError."""
        end = _encode(self._tokenizer, BREAK)
        told = _encode(self._tokenizer, f" {planted}") if planted else ()
        room = length - len(end) - len(told)
        if room < 0:
            raise ValueError(f"a document has {length} tokens: what it must tell takes {length - room}")
        parts: list[Ids] = []
        used = 0
        while used < room:
            # The last sentence is cut off where the document is full.
            parts.append(_encode(self._tokenizer, f" {self._sentence()}")[: room - used])
            used += len(parts[-1])
        parts.insert(rng.randrange(len(parts) + 1), told)
        return (*(token for part in parts for token in part), *end)

    def _sentence(self) -> str:
        if not self._left:
            raise ValueError(
                f"the held-out essays have {len(self._sentences)} sentences, too few for all documents"
            )
        self._at, self._left = (self._at + 1) % len(self._sentences), self._left - 1
        return self._sentences[self._at]


def _encode(tokenizer: Tokenizer, text: str) -> Ids:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def _code(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))
