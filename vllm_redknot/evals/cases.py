"""Prompts whose continuation is known: one passcode in a text, or one of several named ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from vllm_redknot.evals.texts import Part, essay_sentences

NAMES = ("red", "green", "blue", "white")
ASK_SINGLE = "The secret passcode is"


@dataclass(frozen=True)
class Case:
    """Token ids of a prompt and of the only right continuation.

    `gap` is the distance in tokens from the end of the prompt back to the end of the sentence that holds the answer: a
    head whose window is smaller does not see it from there.
    """

    task: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    gap: int


def single_needle(
    tokenizer: Tokenizer, length: int, depth: float, seed: int, part: Part = "held-out"
) -> Case:
    """Essays of `length` tokens with a passcode, stated twice, at the fraction `depth` of them; asked for at the end.

    Raises:
        ValueError: `depth` is not in [0, 1], or the text and its needle do not fit in `length` tokens.
        TextsMissingError: The essays are not installed.
    """
    rng = random.Random(f"single {seed} {part}")
    code = _code(rng)
    needle = f"The secret passcode is {code}. Remember it. {code} is the secret passcode."
    return _place(tokenizer, "needle", [needle], [depth], 0, ASK_SINGLE, code, length, rng, part)


def named_needles(
    tokenizer: Tokenizer,
    length: int,
    depths: Sequence[float],
    asked: int,
    seed: int,
    part: Part = "held-out",
) -> Case:
    """Essays with a passcode of each of `NAMES`, once each, at `depths`; the one of `NAMES[asked]` is asked for.

    Raises as `single_needle`, and ValueError for other than one depth per name.
    """
    if len(depths) != len(NAMES):
        raise ValueError(f"{len(depths)} depths for {len(NAMES)} names")
    rng = random.Random(f"named {seed} {part}")
    codes = [_code(rng) for _ in NAMES]
    needles = [
        f"The {name} passcode is {code}. Remember it." for name, code in zip(NAMES, codes, strict=True)
    ]
    ask = f"The {NAMES[asked]} passcode is"
    return _place(tokenizer, "named", needles, depths, asked, ask, codes[asked], length, rng, part)


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
    part: Part,
) -> Case:
    """Needles between whole sentences: each where its depth comes, sentences dropped from the end to fit `length`."""
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
    sentences = essay_sentences(part)
    at = rng.randrange(len(sentences))
    filler: list[list[int]] = []
    used = 0
    while True:
        ids = encode(f" {sentences[at % len(sentences)]}")
        if used + len(ids) > room:
            break
        filler.append(ids)
        used += len(ids)
        at += 1
    places = [_boundary(filler, depth * used) for depth in depths]
    tokens: list[int] = []
    end_of_answer = 0
    for index, sentence in enumerate([*filler, []]):
        for needle, place in enumerate(places):
            if place == index:
                tokens += spans[needle]
                end_of_answer = len(tokens) if needle == asked else end_of_answer
        tokens += sentence
    prompt = (*tokens, *question)
    return Case(task, prompt, tuple(encode(f" {code}")), len(prompt) - end_of_answer)


def _boundary(filler: Sequence[Sequence[int]], target: float) -> int:
    """How many sentences come before the token number `target`, to the nearest."""
    used = 0
    for index, sentence in enumerate(filler):
        if used + len(sentence) / 2 >= target:
            return index
        used += len(sentence)
    return len(filler)
