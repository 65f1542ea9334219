"""A long text that hides a passcode: the smallest task that a wrong long-range head fails."""

import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from vllm_redknot.evals.texts import essay_sentences


@dataclass(frozen=True)
class NeedlePrompt:
    """A text with a passcode in it and both ways to ask for it."""

    text: str
    passcode: str

    @property
    def completion(self) -> str:
        """The text, cut off where the passcode has to follow."""
        return f"{self.text}\n\nThe secret passcode is"

    @property
    def question(self) -> str:
        """The text with a question, for a chat message."""
        return f"{self.text}\n\nWhat is the secret passcode? Answer with the passcode only."

    def is_answered_by(self, answer: str) -> bool:
        """Whether the answer states the passcode."""
        return self.passcode in answer


def needle_prompt(model_folder: Path, num_tokens: int, depth: float, seed: int) -> NeedlePrompt:
    """Essays of about `num_tokens` tokens with a five-digit passcode after the fraction `depth` of them.

    Raises:
        ValueError: `depth` is not in [0, 1], or `num_tokens` leaves no room for the needle.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}; it must be between 0 and 1")
    if num_tokens < 100:
        raise ValueError(f"num_tokens is {num_tokens}; it must be at least 100")
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    passcode = str(rng.randrange(10_000, 100_000))
    needle = f"The secret passcode is {passcode}. Remember it. {passcode} is the secret passcode."
    sentences = essay_sentences()
    start = rng.randrange(len(sentences))

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    room = num_tokens - count(f"{needle}\n\nThe secret passcode is")
    chosen: list[str] = []
    used = before = 0
    for i in range(len(sentences)):
        sentence = sentences[(start + i) % len(sentences)]
        used += count(f" {sentence}")
        if used > room:
            break
        chosen.append(sentence)
        before += used <= depth * room
    chosen.insert(before if depth < 1 else len(chosen), needle)
    return NeedlePrompt(" ".join(chosen), passcode)
