"""The cases that choose a profile, the cases that compare candidates, and the held-out ones that judge it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from vllm_redknot.evals.cases import NAMES, Case, essay_tail, named_needles, single_needle
from vllm_redknot.evals.texts import Source

ESSAY_ANSWER = 256
"""Tokens at the end of an essay whose likelihood counts."""


@dataclass(frozen=True)
class Mixture:
    """So many texts of each task at each length, from `source`.

    A needle lies at least `gap` tokens before the end of the prompt, where the text is long enough for that.
    """

    source: Source
    lengths: tuple[int, ...]
    texts: int
    gap: int
    seed: int

    def cases(self, tokenizer: Tokenizer) -> list[Case]:
        """Single needles, named needles and essay ends, in turns; the same for the same values."""
        made: list[Case] = []
        for length in self.lengths:
            deepest = max(0.1, 1 - (self.gap + 100) / length)
            for index in range(self.texts):
                draw = random.Random(f"{self.seed} {length} {index}")
                seed = draw.randrange(2**31)
                # One draw from each stratum: the depths of a few texts cover the whole range.
                depth = deepest * (index + draw.random()) / self.texts
                made.append(single_needle(tokenizer, length, depth, seed, self.source))
                made.append(
                    named_needles(
                        tokenizer, length, _depths(draw, deepest), index % len(NAMES), seed, self.source
                    )
                )
                made.append(essay_tail(tokenizer, length, ESSAY_ANSWER, seed, self.source))
        return made


def _depths(draw: random.Random, deepest: float) -> Sequence[float]:
    return [deepest * (index + draw.random()) / len(NAMES) for index in range(len(NAMES))]
