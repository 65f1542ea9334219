"""Prompts whose continuation is known: a passcode in a text, one of several named ones, or the text itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from vllm_redknot.evals.texts import Source, sentences_of

NAMES = ("red", "green", "blue", "white")
ASK_SINGLE = "The secret passcode is"


@dataclass(frozen=True)
class Case:
    """Token ids of a prompt and of the only right continuation.

    `span` is the sentence that holds the answer, as token positions [begin, end).
    """

    task: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    span: tuple[int, int]

    @property
    def gap(self) -> int:
        """Tokens from the end of `span` to the end of the prompt: a smaller window sees none of it from there."""
        return len(self.prompt) - self.span[1]

    def fingerprint(self) -> str:
        """16 hex digits over what is asked and what is right."""
        return hashlib.sha256(repr((self.task, self.prompt, self.answer)).encode()).hexdigest()[:16]

    def after(self, opening: tuple[int, ...]) -> Case:
        """The case with these tokens before its prompt."""
        moved = (self.span[0] + len(opening), self.span[1] + len(opening))
        return Case(self.task, opening + self.prompt, self.answer, moved)


def single_needle(
    tokenizer: Tokenizer, length: int, depth: float, seed: int, source: Source = "held-out"
) -> Case:
    """Essays of `length` tokens with a passcode, stated twice, at the fraction `depth` of them; asked for at the end.

    Raises:
        ValueError: `depth` is not in [0, 1], or the text and its needle do not fit in `length` tokens.
        TextsMissingError: The essays are not installed.
    """
    rng = random.Random(f"single {seed}")
    code = _code(rng)
    needle = f"The secret passcode is {code}. Remember it. {code} is the secret passcode."
    return _place(tokenizer, "needle", [needle], [depth], 0, ASK_SINGLE, code, length, rng, source)


def named_needles(
    tokenizer: Tokenizer,
    length: int,
    depths: Sequence[float],
    asked: int,
    seed: int,
    source: Source = "held-out",
) -> Case:
    """Essays with a passcode of each of `NAMES`, once each, at `depths`; the one of `NAMES[asked]` is asked for.

    Raises as `single_needle`, and ValueError for other than one depth per name.
    """
    if len(depths) != len(NAMES):
        raise ValueError(f"{len(depths)} depths for {len(NAMES)} names")
    rng = random.Random(f"named {seed}")
    codes = [_code(rng) for _ in NAMES]
    needles = [
        f"The {name} passcode is {code}. Remember it." for name, code in zip(NAMES, codes, strict=True)
    ]
    ask = f"The {NAMES[asked]} passcode is"
    return _place(tokenizer, "named", needles, depths, asked, ask, codes[asked], length, rng, source)


def essay_tail(tokenizer: Tokenizer, length: int, last: int, seed: int, source: Source = "held-out") -> Case:
    """`length` tokens of the essays, the `last` of them as the answer. Raises TextsMissingError."""
    sentences = sentences_of(source)
    at = random.Random(f"essays {seed}").randrange(len(sentences))
    ids: list[int] = []
    while len(ids) < length:
        ids += tokenizer.encode(f" {sentences[at % len(sentences)]}", add_special_tokens=False).ids
        at += 1
    return Case("essays", tuple(ids[: length - last]), tuple(ids[length - last : length]), (0, 0))


def _code(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def _place(
    tokenizer: Tokenizer,
    task: str,
    needles: Sequence[str],
    depths: Sequence[float],
    asked: int,
    ask: str,
    code: str,
    length: int,
    rng: random.Random,
    source: Source,
) -> Case:
    """`length` tokens: needles between whole sentences, each nearest to its depth, and the question."""
    if any(not 0 <= depth <= 1 for depth in depths) or list(depths) != sorted(depths):
        raise ValueError(f"depths {list(depths)} must rise from 0 to 1")

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    question = encode(f"\n\n{ask}")
    spans = [encode(f" {needle}") for needle in needles]
    room = length - len(question) - sum(map(len, spans))
    if room < 0:
        raise ValueError(f"length is {length}: the needles alone take {length - room} tokens")
    sentences = sentences_of(source)
    at = rng.randrange(len(sentences))
    filler: list[list[int]] = []
    used = 0
    while used < room:
        # The last sentence is cut off where the text is full.
        ids = encode(f" {sentences[at % len(sentences)]}")[: room - used]
        filler.append(ids)
        used += len(ids)
        at += 1
    places = [_boundary(filler, depth * used) for depth in depths]
    tokens: list[int] = []
    span = (0, 0)
    for index, sentence in enumerate([*filler, []]):
        for needle, place in enumerate(places):
            if place == index:
                tokens += spans[needle]
                if needle == asked:
                    span = (len(tokens) - len(spans[needle]), len(tokens))
        tokens += sentence
    prompt = (*tokens, *question)
    return Case(task, prompt, tuple(encode(f" {code}")), span)


def _boundary(filler: Sequence[Sequence[int]], target: float) -> int:
    """How many sentences come before the token number `target`, to the nearest."""
    used = 0
    for index, sentence in enumerate(filler):
        if used + len(sentence) / 2 >= target:
            return index
        used += len(sentence)
    return len(filler)
